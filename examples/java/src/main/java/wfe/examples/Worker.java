package wfe.examples;

import com.google.protobuf.util.Durations;
import io.grpc.Channel;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.ReentrantLock;
import wfe.persistence.v1.AcknowledgeRequest;
import wfe.persistence.v1.Acknowledgement;
import wfe.persistence.v1.CommitWorkflowRequest;
import wfe.persistence.v1.DequeueRequest;
import wfe.persistence.v1.DequeuedItem;
import wfe.persistence.v1.ErrorReason;
import wfe.persistence.v1.GetWorkflowInstanceRequest;
import wfe.persistence.v1.QueueServiceGrpc;
import wfe.persistence.v1.RenewItemsRequest;
import wfe.persistence.v1.ReturnItemsRequest;
import wfe.persistence.v1.ReturnedItem;
import wfe.persistence.v1.WorkflowInstance;
import wfe.persistence.v1.WorkflowServiceGrpc;

/**
 * Takes items from a queue, has them handled, and says what became of them.
 *
 * <p>Each of its threads asks for an item, has it handled, and settles it when it asks for the next
 * one. So a step whose handler commits is two calls: Dequeue, which brings the item and its workflow,
 * and CommitWorkflow, which stores the step and acknowledges the item.
 */
final class Worker {

  /** Handles an item. If it fails, the item comes again: after 1 s, later with each attempt. */
  interface Handler {
    void handle(Work work) throws Exception;
  }

  /** What a worker tells about what goes wrong. */
  interface Hooks {
    void onError(Work work, Exception error);

    /** Another worker may have handled the item at the same time. */
    void onLost(Work work);

    /** The store failed; the worker asks again after a pause. */
    void onOutage(StatusRuntimeException error);
  }

  /**
   * How a worker works.
   *
   * @param concurrency how many items to handle at a time
   * @param lease how long others wait for the items of a worker that died
   * @param longestWait how long one call waits for an item, and the end for that call
   * @param workerId how the worker calls itself, for people who inspect queues
   */
  record Options(String queue, int concurrency, Duration lease, Duration longestWait, String workerId) {}

  private final QueueServiceGrpc.QueueServiceBlockingStub queues;
  private final WorkflowServiceGrpc.WorkflowServiceBlockingStub workflows;
  private final Options options;
  private final Handler handler;
  private final Hooks hooks;
  private final CountDownLatch stopping = new CountDownLatch(1);
  private final AtomicReference<RuntimeException> failure = new AtomicReference<>();
  private final ScheduledExecutorService renewals = Executors.newSingleThreadScheduledExecutor();

  Worker(Channel channel, Options options, Handler handler, Hooks hooks) {
    queues = QueueServiceGrpc.newBlockingStub(channel);
    workflows = WorkflowServiceGrpc.newBlockingStub(channel);
    this.options = options;
    this.handler = handler;
    this.hooks = hooks;
  }

  /** Handles items until it is stopped; fails with an error that another attempt would not change. */
  void run() throws InterruptedException {
    var slots = new ArrayList<Thread>();
    for (int i = 0; i < options.concurrency(); i++) {
      var slot = new Thread(this::slot, "worker-" + i);
      slots.add(slot);
      slot.start();
    }
    for (var slot : slots) {
      slot.join();
    }
    renewals.shutdown();
    if (failure.get() != null) {
      throw failure.get();
    }
  }

  /**
   * Ends {@code run} when the items in hand have been handled. A call that waits for an item is not
   * broken off, because it might take one.
   */
  void stop() {
    stopping.countDown();
  }

  private void slot() {
    var settled = new Settled(null, false, false);
    for (int outages = 0; stopping.getCount() > 0; ) {
      try {
        var work = take(settled);
        outages = 0;
        settled = new Settled(null, false, false);
        if (work == null) {
          rest(50); // a server may end a wait early
        } else {
          settled = handle(work);
        }
      } catch (StatusRuntimeException e) {
        if (isLost(e)) {
          // Nothing was handed out. If it was applied before, nothing was lost either.
          if (settled.work != null && !settled.uncertain) {
            hooks.onLost(settled.work);
          }
          settled = new Settled(null, false, false);
        } else if (isLasting(e)) {
          failure.compareAndSet(null, e);
          stop();
        } else {
          settled = new Settled(settled.work, settled.acknowledge, true);
          hooks.onOutage(e);
          var pause = Math.min(100L << Math.min(outages++, 10), 5_000);
          rest(ThreadLocalRandom.current().nextLong(pause / 2, pause)); // not all at the same time
        }
      } catch (RuntimeException e) { // of a hook
        failure.compareAndSet(null, e);
        stop();
      }
    }
    settle(settled);
  }

  private void rest(long milliseconds) {
    try {
      stopping.await(milliseconds, TimeUnit.MILLISECONDS);
    } catch (InterruptedException e) {
      stop(); // nobody else interrupts it
    }
  }

  private static boolean isLost(Exception e) {
    return e instanceof StatusRuntimeException status
        && Failure.of(status).reason() == ErrorReason.ERROR_REASON_LEASE_LOST;
  }

  /** Whether an error would be the same the next time. */
  private static boolean isLasting(StatusRuntimeException e) {
    return switch (e.getStatus().getCode()) {
      case INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNIMPLEMENTED -> true;
      default -> false;
    };
  }

  private Work take(Settled settled) {
    var request =
        DequeueRequest.newBuilder()
            .addQueues(options.queue())
            .setLeaseDuration(Durations.fromMillis(options.lease().toMillis()))
            .setWorkerId(options.workerId())
            .setIncludeWorkflow(true)
            .setWait(Durations.fromMillis(options.longestWait().toMillis()));
    if (settled.work != null && settled.acknowledge) {
      request.addAcknowledge(settled.work.acknowledgement());
    } else if (settled.work != null) {
      request.addReturnItems(settled.work.returned());
    }
    var items =
        queues
            .withDeadlineAfter(options.longestWait().toMillis() + 10_000, TimeUnit.MILLISECONDS)
            .dequeue(request.build())
            .getItemsList();
    return items.isEmpty() ? null : new Work(items.get(0));
  }

  /** Has an item handled; returns what is to be said of it. */
  private Settled handle(Work work) {
    var every = options.lease().toMillis() / 3;
    var renewal =
        renewals.scheduleWithFixedDelay(
            () -> renew(work), every, every, TimeUnit.MILLISECONDS);
    Exception error = null;
    try {
      work.load();
      handler.handle(work);
    } catch (Exception e) {
      error = e;
    } finally {
      renewal.cancel(false);
      work.end();
    }
    if (work.lost) {
      hooks.onLost(work);
      return new Settled(null, false, false);
    }
    if (error != null) {
      hooks.onError(work, error);
    }
    // A commit whose outcome is not known may have acknowledged it.
    return work.committed
        ? new Settled(null, false, false)
        : new Settled(work, error == null, error instanceof StatusRuntimeException);
  }

  private void renew(Work work) {
    if (!work.committing.tryLock()) {
      return; // a commit is under way, which acknowledges it
    }
    try {
      if (!work.committed) {
        queues.renewItems(
            RenewItemsRequest.newBuilder()
                .addReceipts(work.item.getReceipt())
                .setLeaseDuration(Durations.fromMillis(options.lease().toMillis()))
                .build());
      }
    } catch (StatusRuntimeException e) {
      // Any other error may pass before the lease expires.
      if (isLost(e)) {
        work.lose();
      }
    } finally {
      work.committing.unlock();
    }
  }

  /** Says what became of the last item; otherwise it comes back when its lease expires. */
  private void settle(Settled settled) {
    if (settled.work == null) {
      return;
    }
    try {
      if (settled.acknowledge) {
        queues.acknowledge(
            AcknowledgeRequest.newBuilder().addAcknowledge(settled.work.acknowledgement()).build());
      } else {
        queues.returnItems(
            ReturnItemsRequest.newBuilder().addReturnItems(settled.work.returned()).build());
      }
    } catch (StatusRuntimeException e) {
      if (!isLost(e)) {
        hooks.onOutage(e);
      } else if (!settled.uncertain) {
        hooks.onLost(settled.work);
      }
    }
  }

  /**
   * What became of the item that a thread has handled last, and is to be sent.
   *
   * @param acknowledge whether it was handled; otherwise it is given back
   * @param uncertain it may have been applied already, because a response was lost
   */
  private record Settled(Work work, boolean acknowledge, boolean uncertain) {}

  /** An item in the hands of a handler, whose thread is interrupted if the lease is lost. */
  final class Work {
    final DequeuedItem item;

    /** The workflow with the item's id, read with it; null: there is none. */
    private WorkflowInstance workflow;

    /** A renewal must not take the acknowledgement by a commit for a loss. */
    private final ReentrantLock committing = new ReentrantLock();

    private volatile boolean committed;
    private volatile boolean lost;
    private Thread handling = Thread.currentThread();

    private Work(DequeuedItem item) {
      this.item = item;
      workflow = item.hasWorkflow() ? item.getWorkflow() : null;
    }

    WorkflowInstance workflow() {
      return workflow;
    }

    /** Loads the workflow, if it did not fit in a response together with the item. */
    private void load() {
      if (item.getWorkflowOmitted()) {
        var request = GetWorkflowInstanceRequest.newBuilder().setId(item.getItem().getId());
        workflow = workflows.getWorkflowInstance(request.build()).getInstance();
      }
    }

    /**
     * Stores the workflow, or a patch to it, with the effects of the step, and acknowledges the item,
     * all in one transaction. It is refused if the lease is lost, or the workflow was written since it
     * was read. Without a commit, the item is acknowledged when the handler returns.
     */
    void commit(CommitWorkflowRequest.Builder step) {
      if (!step.hasExpectedRevision() && workflow != null) {
        step.setExpectedRevision(workflow.getRevision());
      }
      if (step.getRequestId().isEmpty()) {
        // So that the write can be repeated after a lost response.
        step.setRequestId(UUID.randomUUID().toString());
      }
      committing.lock();
      try {
        workflows.commitWorkflow(step.addAcknowledge(acknowledgement()).build());
        committed = true;
      } catch (StatusRuntimeException e) {
        // One of the locks or claims of the step may be lost instead.
        var field = Failure.of(e).metadata().getOrDefault("field", "");
        lost |= isLost(e) && field.startsWith("acknowledge");
        throw e;
      } finally {
        committing.unlock();
      }
    }

    private Acknowledgement acknowledgement() {
      return Acknowledgement.newBuilder().setReceipt(item.getReceipt()).build();
    }

    private ReturnedItem returned() {
      var delay = Math.min(1_000L << Math.min(item.getAttempt() - 1, 10), 60_000);
      return ReturnedItem.newBuilder()
          .setReceipt(item.getReceipt())
          .setDelay(Durations.fromMillis(delay))
          .build();
    }

    private synchronized void lose() {
      lost = true;
      if (handling != null) {
        handling.interrupt();
      }
    }

    /** From now on, the thread does something else. */
    private synchronized void end() {
      handling = null;
      Thread.interrupted(); // if it was interrupted after the handler had returned
    }
  }
}
