/** Several hosts, which die: every workflow ends as it should, and no step runs twice at the same time. */
import assert from "node:assert/strict";
import { type ChildProcess, fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { order, STEPS } from "./order.js";
import { Scene, until } from "./scene.js";

const HOST = fileURLToPath(new URL("order.js", import.meta.url));
/** Orders, the hosts that run them, and what their steps have noted. */
class Fleet {
  readonly #folder = mkdtempSync(join(tmpdir(), "workflow-es-"));
  readonly #notes = join(this.#folder, "notes");
  readonly #id = `order-${randomUUID()}`;
  readonly #events = `paid-${randomUUID()}`;
  readonly scene = new Scene([order(this.#id, this.#events, this.#notes)]);
  readonly #living = new Set<ChildProcess>();
  readonly dead = new Set<string>();

  constructor(private readonly orders: number) {
    writeFileSync(this.#notes, "");
  }

  async host(): Promise<ChildProcess> {
    const child = fork(HOST, [this.#id, this.#events, this.#notes, this.scene.app]);
    this.#living.add(child);
    await once(child, "message");
    return child;
  }

  async kill(child: ChildProcess): Promise<void> {
    this.dead.add(String(child.pid));
    this.#living.delete(child);
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  /** Each note as begin or end, what was begun, and the process. */
  notes(): [string, string, string][] {
    const lines = readFileSync(this.#notes, "utf8").split("\n").slice(0, -1);
    return lines.map((line) => {
      const [what, workflow, step, pid] = line.split(" ");
      return [what!, `${workflow} ${step}`, pid!];
    });
  }

  /** Orders, and the payment of each, for some before anybody waits for it. */
  async order(): Promise<string[]> {
    const client = await this.scene.client();
    const numbers = Array.from({ length: this.orders }, (_, number) => number);
    return Promise.all(
      numbers.map(async (number) => {
        const id = await client.startWorkflow(this.#id, 1, { number, done: [] });
        await client.publishEvent(this.#events, number as unknown as string, { cents: number * 100 }, new Date());
        return id;
      }),
    );
  }

  async check(ids: string[]): Promise<void> {
    for (const [number, id] of ids.entries()) {
      const { dataJson } = await this.scene.reaches(id);
      const { done, ...data } = JSON.parse(dataJson);
      assert.deepEqual(data, { number, paid: { cents: number * 100 } });
      assert.equal(done.at(-1), "ship");
      assert.deepEqual(done.sort(), [...STEPS].sort());
    }
    const running = new Map<string, string>();
    const ended = new Set<string>();
    for (const [what, step, pid] of this.notes()) {
      const holder = running.get(step);
      if (what === "begin") {
        assert.ok(!holder || this.dead.has(holder), `${step} was begun by ${pid} while ${holder} ran it`);
        running.set(step, pid);
      } else {
        running.delete(step);
        ended.add(step);
      }
    }
    assert.equal(ended.size, this.orders * STEPS.length);
    await this.scene.tidy();
  }

  async close(): Promise<void> {
    await Promise.all(
      [...this.#living].map(async (child) => {
        const exit = once(child, "exit");
        child.send("stop");
        assert.deepEqual(await exit, [0, null]);
        this.#living.delete(child);
      }),
    );
  }

  /** Whatever happened, no process is left. */
  async end(): Promise<void> {
    for (const child of this.#living) await this.kill(child);
    await this.scene.close();
    rmSync(this.#folder, { recursive: true });
  }
}

async function withFleet(orders: number, run: (fleet: Fleet) => Promise<void>): Promise<void> {
  const fleet = new Fleet(orders);
  try {
    await run(fleet);
    await fleet.close();
  } finally {
    await fleet.end();
  }
}

test("two hosts: both take part, and every step runs once", () =>
  withFleet(12, async (fleet) => {
    const hosts = await Promise.all([fleet.host(), fleet.host()]);
    await fleet.check(await fleet.order());
    const begun = fleet.notes().filter(([what]) => what === "begin");
    assert.equal(begun.length, 12 * STEPS.length);
    assert.deepEqual(new Set(begun.map(([, , pid]) => pid)), new Set(hosts.map(({ pid }) => String(pid))));
  }));

const seed = Number(process.env["WFE_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

/** Numbers below 1, the same for the same seed. */
function* numbers(state = seed): Generator<number, never> {
  for (;;) {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    yield state / 2 ** 31;
  }
}

const [ORDERS, KILLS] = [25, 6];

test(`two hosts, killed in the middle of it again and again: WFE_SEED=${seed}`, () =>
  withFleet(ORDERS, async (fleet) => {
    const chance = numbers();
    const hosts = [await fleet.host(), await fleet.host()];
    const ids = await fleet.order();
    // The steps make at least 10 notes for each order.
    for (let kill = 1; kill <= KILLS; kill++) {
      const moment = (ORDERS * 10 * (kill - 1 + chance.next().value)) / (KILLS + 1);
      await until(async () => fleet.notes().length >= moment, `${moment} notes`);
      const i = Math.floor(chance.next().value * hosts.length);
      await fleet.kill(hosts[i]!);
      hosts[i] = await fleet.host();
    }
    await fleet.check(ids);
    assert.equal(fleet.dead.size, KILLS);
  }));
