package wfe.examples;

import com.google.gson.Gson;
import io.grpc.Grpc;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import wfe.persistence.v1.CommitWorkflowRequest;
import wfe.persistence.v1.QueueItem;
import wfe.persistence.v1.WorkflowStatus;

/** A worker on a queue of workflows that count down, until it is told to stop. See README.md. */
public final class Count {

  /** The data of such a workflow: how many steps are left, and how long each takes. */
  private record Countdown(int left, int work_ms) {}

  private Count() {}

  /** Takes one step of such a workflow, and enqueues it for the next one. */
  private static void countDown(Worker.Work work) throws InterruptedException {
    var workflow = work.workflow();
    if (workflow == null || workflow.getStatus() != WorkflowStatus.WORKFLOW_STATUS_RUNNABLE) {
      return;
    }
    var data = new Gson().fromJson(workflow.getDataJson(), Countdown.class);
    System.out.println("begin " + workflow.getId() + " " + data.left());
    Thread.sleep(data.work_ms());
    data = new Countdown(data.left() - 1, data.work_ms());
    var changed = workflow.toBuilder().setDataJson(new Gson().toJson(data));
    var step = CommitWorkflowRequest.newBuilder();
    if (data.left() == 0) {
      changed.setStatus(WorkflowStatus.WORKFLOW_STATUS_COMPLETE);
    } else {
      // An empty id stands for the workflow's.
      step.addEnqueue(QueueItem.newBuilder().setQueue(work.item.getItem().getQueue()));
    }
    work.commit(step.setInstance(changed));
    System.out.println("end " + workflow.getId() + " " + data.left());
  }

  private static final Worker.Hooks HOOKS =
      new Worker.Hooks() {
        @Override
        public void onError(Worker.Work work, Exception error) {
          System.out.println("error " + work.item.getItem().getId() + " " + error);
        }

        @Override
        public void onLost(Worker.Work work) {
          System.out.println("lost " + work.item.getItem().getId());
        }

        @Override
        public void onOutage(StatusRuntimeException error) {
          System.out.println("outage " + error.getMessage());
        }
      };

  public static void main(String[] args) throws IOException, InterruptedException {
    var given =
        new TreeMap<>(
            Map.of(
                "--target", "127.0.0.1:50052",
                "--queue", "countdown",
                "--concurrency", "2",
                "--lease-ms", "30000"));
    for (int i = 0; i < args.length; i += 2) {
      if (i + 1 == args.length || given.replace(args[i], args[i + 1]) == null) {
        System.err.println("usage: Count [" + String.join(" …] [", given.keySet()) + " …]");
        System.exit(2);
      }
    }
    var channel =
        Grpc.newChannelBuilder(given.get("--target"), Connection.credentials())
            .intercept(new Deadlines())
            .build();
    var options =
        new Worker.Options(
            given.get("--queue"),
            Integer.parseInt(given.get("--concurrency")),
            Duration.ofMillis(Long.parseLong(given.get("--lease-ms"))),
            Duration.ofSeconds(1),
            "java-" + ProcessHandle.current().pid());
    var worker = new Worker(channel, options, Count::countDown, HOOKS);
    var ended = new CountDownLatch(1);
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  worker.stop();
                  try {
                    ended.await();
                  } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                  }
                }));
    try {
      worker.run();
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
      ended.countDown();
    }
  }
}
