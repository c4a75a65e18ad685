/** The engine's scenarios, each by its own API, and what is stored of them. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ExecutionResult, StepBody, type StepExecutionContext, WorkflowErrorHandling } from "workflow-es";
import { QueueItemState } from "../../typescript/gen/wfe/persistence/v1/queue_pb.js";
import {
  type CommitWorkflowRequest,
  PointerStatus,
  WorkflowStatus,
} from "../../typescript/gen/wfe/persistence/v1/workflow_pb.js";
import { transport } from "../../typescript/src/connect.js";
import { body, define, type Definition, Scene, step, target, until, withScene } from "./scene.js";

const idOf = (definition: Definition): string => new definition().id;

/** Adds two numbers. */
class Add extends StepBody {
  left = 0;
  right = 0;
  sum = 0;

  async run(): Promise<ExecutionResult> {
    this.sum = this.left + this.right;
    return ExecutionResult.next();
  }
}

const Nothing = step(() => {});

describe("the engine's scenarios", { concurrency: 4 }, () => {
  test("linear: each step once, in their order", async () => {
    const ran: string[] = [];
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .then(step(() => ran.push("second")))
        .then(step(() => ran.push("third")))
        .then(step(() => ran.push("fourth"))),
    );
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, {});
      const { executionPointers, createTime, completeTime, nextExecution } = await scene.reaches(id);
      assert.deepEqual(ran, ["second", "third", "fourth"]);
      assert.deepEqual(executionPointers.map(({ status }) => status), Array(4).fill(PointerStatus.COMPLETE));
      assert.ok(createTime && completeTime && nextExecution === undefined);
      executionPointers.slice(1).forEach((pointer, i) => assert.equal(pointer.predecessorId, executionPointers[i]?.id));
    });
  });

  test("data: inputs, outputs and what a step leaves in them", async () => {
    const definition = define((builder) =>
      builder
        .startWith(Add)
        .input((add, data) => {
          add.left = data.left;
          add.right = data.right;
        })
        .output((add, data) => (data.sum = add.sum))
        .then(step(({ workflow }) => (workflow.data.doubled = workflow.data.sum * 2))),
    );
    await withScene([definition], async (scene, host) => {
      const data = { left: 2, right: 3, text: "schön \u{1F600}", list: [{ deep: [null, true, 0.5] }] };
      const { dataJson } = await scene.reaches(await host.startWorkflow(idOf(definition), 1, data));
      assert.deepEqual(JSON.parse(dataJson), { ...data, sum: 5, doubled: 10 });
    });
  });

  test("outcomes: only the branch whose value a step has returned", async () => {
    const ran: string[] = [];
    const definition = define((builder) => {
      const choose = body(async ({ workflow }) => ExecutionResult.outcome(workflow.data.way));
      const fork = builder.startWith(Nothing).then(choose);
      fork.when(() => "left").then(step(() => ran.push("left")));
      fork.when(() => "right").then(step(() => ran.push("right")));
    });
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, { way: "right" });
      const { executionPointers } = await scene.reaches(id);
      assert.deepEqual(ran, ["right"]);
      assert.equal(executionPointers[1]?.outcomeJson, '"right"');
    });
  });

  test("if, while, foreach", async () => {
    const ran: string[] = [];
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .if((data) => data.count === 0)
        .do((then) => then.startWith(Nothing).then(step(() => ran.push("if"))))
        .if((data) => data.count > 0)
        .do((then) => then.startWith(Nothing).then(step(() => ran.push("never"))))
        .while((data) => data.count < 3)
        .do((then) => then.startWith(Nothing).then(step(({ workflow }) => ran.push(`while ${workflow.data.count++}`))))
        .foreach((data) => data.items)
        .do((then) => then.startWith(Nothing).then(step(({ item }) => ran.push(`each ${item.name}`))))
        .then(step(() => ran.push("end"))),
    );
    await withScene([definition], async (scene, host) => {
      const data = { count: 0, items: [{ name: "a" }, { name: "b" }, { name: "c" }] };
      const { executionPointers } = await scene.reaches(await host.startWorkflow(idOf(definition), 1, data));
      assert.deepEqual(ran.slice(0, 4), ["if", "while 0", "while 1", "while 2"]);
      assert.deepEqual(ran.slice(4, 7).sort(), ["each a", "each b", "each c"]);
      assert.deepEqual(ran.slice(7), ["end"]);
      // What the loops are made of has come back as it was.
      const loops = executionPointers.filter(({ children }) => children.length > 0);
      assert.deepEqual(loops.map(({ children }) => children.length), [1, 3, 3]);
      const inner = executionPointers.filter(({ scope }) => scope.length > 0);
      assert.ok(inner.every(({ scope }) => loops.some(({ id }) => id === scope[0])));
      const names = executionPointers.map(({ contextItemJson }) => JSON.parse(contextItemJson ?? "null")?.name);
      assert.deepEqual([...new Set(names.filter(Boolean))].sort(), ["a", "b", "c"]);
    });
  });

  test("parallel branches are joined", async () => {
    const ran: string[] = [];
    const branch = (name: string) => step(() => ran.push(name));
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .parallel()
        .do((then) => then.startWith(Nothing).then(branch("a1")).then(branch("a2")))
        .do((then) => then.startWith(Nothing).then(branch("b1")).then(branch("b2")))
        .join()
        .then(branch("joined")),
    );
    await withScene([definition], async (scene, host) => {
      await scene.reaches(await host.startWorkflow(idOf(definition), 1, {}));
      assert.deepEqual([...ran].sort(), ["a1", "a2", "b1", "b2", "joined"]);
      assert.equal(ran.at(-1), "joined");
    });
  });

  const waiting = (name: string): Definition =>
    define((builder) =>
      builder
        .startWith(Nothing)
        .waitFor(name, (data) => data.key, () => new Date(0))
        .output((wait, data) => (data.received = wait.eventData)),
    );

  test("an event reaches all workflows that wait for it, and no others", async () => {
    const name = `paid-${crypto.randomUUID()}`;
    const definition = waiting(name);
    await withScene([definition], async (scene, host) => {
      const start = (key: unknown) => host.startWorkflow(idOf(definition), 1, { key });
      const ids = await Promise.all([start("a"), start("a"), start("b"), start(7), start(null)]);
      for (const id of ids) await scene.waits(id);
      await host.publishEvent(name, "a", { amount: 1 }, new Date());
      for (const id of ids.slice(0, 2)) {
        const { dataJson, executionPointers } = await scene.reaches(id);
        assert.deepEqual(JSON.parse(dataJson), { key: "a", received: { amount: 1 } });
        assert.ok(executionPointers[1]?.eventPublished);
      }
      for (const id of ids.slice(2)) assert.equal((await scene.workflow(id)).status, WorkflowStatus.RUNNABLE);
      // Keys are texts: a number finds itself, and no key the ones without.
      await host.publishEvent(name, "b", undefined, new Date());
      await host.publishEvent(name, 7 as unknown as string, "seven", new Date());
      await host.publishEvent(name, undefined as unknown as string, "none", new Date());
      const received = [];
      for (const id of ids.slice(2)) received.push(JSON.parse((await scene.reaches(id)).dataJson).received);
      assert.deepEqual(received, [null, "seven", "none"]);
    });
  });

  test("an event that came before the workflow waits for it", async () => {
    const name = `early-${crypto.randomUUID()}`;
    const definition = waiting(name);
    await withScene([definition], async (scene, host) => {
      await host.publishEvent(name, "k", "early", new Date());
      await scene.tidy(); // it is processed: nobody waits for it
      const { dataJson } = await scene.reaches(await host.startWorkflow(idOf(definition), 1, { key: "k" }));
      assert.equal(JSON.parse(dataJson).received, "early");
    });
  });

  test("an event of the future is delivered when it is due", async () => {
    const name = `future-${crypto.randomUUID()}`;
    const definition = waiting(name);
    await withScene([definition], async (scene, host) => {
      const due = Date.now() + 700;
      await host.publishEvent(name, "k", "due", new Date(due));
      const id = await host.startWorkflow(idOf(definition), 1, { key: "k" });
      await scene.reaches(id);
      assert.ok(Date.now() >= due);
    });
  });

  test("a delay is not shorter than it should be, and its end is not left to the poller", async () => {
    let began = 0;
    let ended = 0;
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .then(step(() => (began = Date.now())))
        .delay(() => 400)
        .then(step(() => (ended = Date.now()))),
    );
    await withScene([definition], async (scene, host) => {
      await scene.reaches(await host.startWorkflow(idOf(definition), 1, {}));
      assert.ok(ended - began >= 400, `${ended - began}`);
    });
  });

  test("a workflow that sleeps is not woken by whoever enqueues it", async () => {
    let woken = 0;
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .delay(() => 1200)
        .then(step(() => (woken = Date.now()))),
    );
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, {});
      const due = await scene.sleeps(id);
      await scene.queues.enqueue({ items: [{ queue: `${scene.app}.workflows`, id }] });
      await scene.reaches(id);
      assert.ok(woken >= due, `${woken} is before ${due}`);
    });
  });

  test("a step that fails is retried, and its errors are logged", async () => {
    let attempts = 0;
    const definition = define((builder) => {
      builder
        .startWith(Nothing)
        .then(step(() => {
          if (++attempts < 3) throw new Error(`attempt ${attempts}`);
        }))
        .onError(WorkflowErrorHandling.Retry, 100);
    });
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, {});
      const { executionPointers } = await scene.reaches(id);
      assert.equal(attempts, 3);
      assert.equal(executionPointers[1]?.retryCount, 2);
      const { errors } = await scene.store.listErrors({ workflowId: id });
      assert.deepEqual(errors.map(({ message }) => message).sort(), ["attempt 1", "attempt 2"]);
    });
  });

  test("a saga that fails is compensated", async () => {
    const ran: string[] = [];
    const fail = step(() => {
      throw new Error("no");
    });
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .saga((then) =>
          then
            .startWith(Nothing)
            .compensateWith(step(() => ran.push("undone")))
            .then(fail),
        )
        .then(step(() => ran.push("end"))),
    );
    await withScene([definition], async (scene, host) => {
      const { executionPointers } = await scene.reaches(await host.startWorkflow(idOf(definition), 1, {}));
      assert.ok(ran.includes("undone"), ran.join());
      assert.ok(executionPointers.some(({ status }) => status === PointerStatus.COMPENSATED));
    });
  });

  test("suspended, resumed, terminated", async () => {
    let ran = 0;
    const definition = define((builder) =>
      builder
        .startWith(Nothing)
        .delay(() => 300)
        .then(step(() => ran++)),
    );
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, {});
      await scene.sleeps(id);
      assert.ok(await host.suspendWorkflow(id));
      await scene.tidy(); // its item is gone when the delay is over
      assert.equal((await scene.workflow(id)).status, WorkflowStatus.SUSPENDED);
      assert.equal(ran, 0);
      assert.ok(await host.resumeWorkflow(id)); // and is run at once, not when the poller finds it
      await scene.reaches(id);
      assert.equal(ran, 1);

      const other = await host.startWorkflow(idOf(definition), 1, {});
      await scene.sleeps(other);
      assert.ok(await host.terminateWorkflow(other));
      await scene.tidy();
      assert.equal((await scene.workflow(other)).status, WorkflowStatus.TERMINATED);
      assert.equal(ran, 1);
    });
  });

  test("what can't be stored suspends the workflow, and its step is not run again", async () => {
    let ran = 0;
    const definition = define((builder) =>
      builder.startWith(Nothing).then(
        step(({ workflow }: StepExecutionContext) => {
          ran++;
          workflow.data.text = "\0";
        }),
      ),
    );
    await withScene([definition], async (scene, host) => {
      const id = await host.startWorkflow(idOf(definition), 1, { text: "before" });
      const { dataJson } = await scene.reaches(id, WorkflowStatus.SUSPENDED);
      await scene.tidy();
      assert.equal(ran, 1);
      assert.deepEqual(JSON.parse(dataJson), { text: "before" });
      const { errors } = await scene.store.listErrors({ workflowId: id });
      assert.match(errors[0]?.message ?? "", /^suspended: .*invalid/);
    });
  });

  test("a workflow that its host does not know comes back later each time, until it does", async () => {
    let ran = 0;
    const ours = define((builder) => void builder.startWith(Nothing));
    const newer = define((builder) => void builder.startWith(step(() => ran++)));
    await withScene([ours], async (scene, host) => {
      const { id } = await scene.workflows.createNewWorkflow({
        instance: {
          workflowDefinitionId: idOf(newer),
          version: 1,
          status: WorkflowStatus.RUNNABLE,
          nextExecution: 0n,
          dataJson: "{}",
          createTime: timestampNow(),
          executionPointers: [{ id: "1", active: true, status: PointerStatus.PENDING }],
        },
        enqueue: [{ queue: `${scene.app}.workflows` }],
      });
      const { revision: before } = await scene.workflow(id);
      await until(async () => {
        const [item] = await scene.items();
        return item?.state === QueueItemState.DELAYED && item.attempt === 2;
      }, "the end of the second attempt");
      // The engine persists what it could not run, once for each attempt: so there were no more.
      assert.equal((await scene.workflow(id)).revision - before, 2n);
      assert.ok(scene.complaints.every((line) => line.includes("not registered")), scene.complaints.join("\n"));
      host.registerWorkflow(newer);
      await scene.reaches(id);
      assert.equal(ran, 1);
    });
  });

  test("applications on one store leave each other's workflows alone", async () => {
    const ran: string[] = [];
    const [ours, theirs] = ["ours", "theirs"].map((name) =>
      define((builder) => void builder.startWith(step(() => ran.push(name)))),
    );
    await withScene([ours!], async (scene, host) => {
      const other = new Scene([theirs!]);
      try {
        const id = await (await other.client()).startWorkflow(idOf(theirs!), 1, {});
        await scene.reaches(await host.startWorkflow(idOf(ours!), 1, {}));
        await scene.polls(); // and finds nothing to run
        await scene.tidy();
        assert.deepEqual(ran, ["ours"]);
        await other.host();
        await other.reaches(id);
        assert.deepEqual(ran, ["ours", "theirs"]);
        await other.tidy();
      } finally {
        await other.close();
      }
    });
  });

  /** A connection that counts its calls, and can be cut. */
  class Line {
    readonly calls: Record<string, number> = {};
    cut: (name: string, message: unknown) => boolean = () => false;
    #dead = false;

    readonly transport = transport(target, (next) => async (request) => {
      const { name } = request.method;
      this.calls[name] = (this.calls[name] ?? 0) + 1;
      if (this.#dead) throw new ConnectError("dead", Code.FailedPrecondition);
      const response = await next(request);
      this.#dead ||= this.cut(name, request.message);
      return response;
    });
  }

  test("whoever delivers an event leaves the workflows of other applications to their hosts", async () => {
    const name = `shared-${crypto.randomUUID()}`;
    const definition = waiting(name);
    const line = new Line();
    await withScene([definition], async (scene, host) => {
      const other = new Scene([define((builder) => void builder.startWith(Nothing))]);
      try {
        const publisher = await other.host({ transport: line.transport });
        const id = await host.startWorkflow(idOf(definition), 1, { key: "k" });
        await scene.waits(id);
        await publisher.publishEvent(name, "k", "theirs", new Date());
        assert.equal(JSON.parse((await scene.reaches(id)).dataJson).received, "theirs");
        await other.tidy();
      } finally {
        await other.close();
      }
      assert.equal(line.calls["CommitWorkflow"], 1); // the delivery, and no step
    });
  });

  test("a step is five calls: take, lock, load, commit, unlock", async () => {
    const line = new Line();
    const definition = define((builder) => builder.startWith(Nothing).then(Nothing).then(Nothing));
    await withScene([definition], async (scene, host) => {
      await scene.reaches(await host.startWorkflow(idOf(definition), 1, {}));
      await scene.tidy();
      const { Dequeue, GetQueueStats, ConfigureQueue, ...calls } = line.calls;
      assert.ok(Dequeue! >= 3, `${Dequeue}`); // and those that found nothing
      const each = { AcquireLock: 3, GetWorkflowInstance: 3, CommitWorkflow: 3, ReleaseLock: 3 };
      assert.deepEqual(calls, { CreateNewWorkflow: 1, ...each });
    }, { transport: line.transport, leaseMs: 60_000 });
  });

  test("no event is lost by a host that dies just when its workflow waits for it", async () => {
    const name = `last-${crypto.randomUUID()}`;
    const definition = waiting(name);
    const line = new Line();
    await withScene([definition], async (scene, mortal) => {
      await mortal.publishEvent(name, "k", "kept", new Date());
      await scene.tidy(); // it is processed: nobody waits for it
      // The engine would look for earlier events after this.
      line.cut = (method, message) =>
        method === "CommitWorkflow" && (message as CommitWorkflowRequest).createSubscriptions.length > 0;
      const id = await mortal.startWorkflow(idOf(definition), 1, { key: "k" });
      await scene.waits(id);
      const died = async () => scene.complaints.some((complaint) => complaint.includes("dead"));
      await until(died, "the death of the host");
      mortal.stop();
      await scene.host();
      assert.equal(JSON.parse((await scene.reaches(id)).dataJson).received, "kept");
    }, { transport: line.transport });
  });
});
