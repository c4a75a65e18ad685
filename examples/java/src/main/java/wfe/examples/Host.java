package wfe.examples;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Timestamp;
import com.google.protobuf.util.Durations;
import com.google.protobuf.util.Timestamps;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import java.io.IOException;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import wfe.persistence.v1.ClaimCommandsRequest;
import wfe.persistence.v1.ClaimedCommand;
import wfe.persistence.v1.CommandName;
import wfe.persistence.v1.CompleteCommandsRequest;
import wfe.persistence.v1.CreateEventRequest;
import wfe.persistence.v1.CreateNewWorkflowRequest;
import wfe.persistence.v1.ErrorReason;
import wfe.persistence.v1.Event;
import wfe.persistence.v1.EventServiceGrpc;
import wfe.persistence.v1.EventSubscription;
import wfe.persistence.v1.ExecutionPointer;
import wfe.persistence.v1.GetEventRequest;
import wfe.persistence.v1.GetFirstOpenSubscriptionRequest;
import wfe.persistence.v1.GetRunnableInstancesRequest;
import wfe.persistence.v1.GetWorkflowInstanceRequest;
import wfe.persistence.v1.GetWorkflowInstancesRequest;
import wfe.persistence.v1.MarkEventProcessedRequest;
import wfe.persistence.v1.PersistWorkflowRequest;
import wfe.persistence.v1.PersistWorkflowWithSubscriptionsRequest;
import wfe.persistence.v1.PointerStatus;
import wfe.persistence.v1.ReleaseCommandsRequest;
import wfe.persistence.v1.ScheduleCommandRequest;
import wfe.persistence.v1.ScheduledCommand;
import wfe.persistence.v1.ScheduledCommandServiceGrpc;
import wfe.persistence.v1.SetSubscriptionTokenRequest;
import wfe.persistence.v1.SubscriptionServiceGrpc;
import wfe.persistence.v1.TerminateSubscriptionRequest;
import wfe.persistence.v1.WorkflowInstance;
import wfe.persistence.v1.WorkflowServiceGrpc;
import wfe.persistence.v1.WorkflowStatus;

/**
 * A workflow host in Java: it runs an order from creation to completion through every kind of
 * call that the persistence server offers. See README.md.
 */
public final class Host {
  /** Identifies this worker to people who inspect the store. */
  private static final String WORKER_ID = "java-host";

  private static final long BEYOND_DOUBLE = (1L << 53) + 1;

  private final Channel channel;
  private final WorkflowServiceGrpc.WorkflowServiceBlockingStub workflows;
  private final EventServiceGrpc.EventServiceBlockingStub events;
  private final SubscriptionServiceGrpc.SubscriptionServiceBlockingStub subscriptions;
  private final ScheduledCommandServiceGrpc.ScheduledCommandServiceBlockingStub commands;

  /** The order number, new in each run. */
  private final String order = "java-" + UUID.randomUUID();

  Host(Channel channel) {
    this.channel = channel;
    workflows = WorkflowServiceGrpc.newBlockingStub(channel);
    events = EventServiceGrpc.newBlockingStub(channel);
    subscriptions = SubscriptionServiceGrpc.newBlockingStub(channel);
    commands = ScheduledCommandServiceGrpc.newBlockingStub(channel);
  }

  public static void main(String[] args) throws InterruptedException {
    var arguments = Arrays.asList(args);
    var target = System.getenv().getOrDefault("WFE_TARGET", "127.0.0.1:50052");
    if (arguments.size() == 2 && arguments.get(0).equals("--target")) {
      target = arguments.get(1);
    } else if (!arguments.isEmpty()) {
      System.err.println("usage: Host [--target HOST:PORT]");
      System.exit(2);
    }
    ChannelCredentials credentials = null;
    try {
      credentials = Connection.credentials();
    } catch (IOException e) {
      System.err.println(e.getMessage());
      System.exit(1);
    }
    var channel =
        Grpc.newChannelBuilder(target, credentials)
            .intercept(new Deadlines())
            .build();
    try {
      var host = new Host(channel);
      try {
        host.waitUntilServing();
      } catch (StatusRuntimeException e) {
        var cause = e.getCause() == null ? "" : ": " + e.getCause().getMessage();
        System.err.println("no connection to " + target + ": " + e.getMessage() + cause);
        System.exit(1);
      }
      System.out.println(new Gson().toJson(host.run()));
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private JsonObject run() {
    var workflowId = create();
    change(workflowId);
    refused(workflowId);
    var subscriptionId = waitForEvent(workflowId);
    var eventId = deliverEvents();
    runCommands(workflowId);
    var batchIds = batch();
    var summary = new JsonObject();
    summary.addProperty("workflow_id", workflowId);
    summary.addProperty("event_id", eventId);
    summary.addProperty("subscription_id", subscriptionId);
    summary.add("batch_ids", new Gson().toJsonTree(batchIds));
    summary.addProperty("revision", Long.toString(load(workflowId).getRevision()));
    return summary;
  }

  /**
   * Watches the server's health until it is ready, also while it starts. Without a server that
   * listens, it fails at once: a call waits for a connection only if it is told to.
   */
  private void waitUntilServing() {
    var health =
        HealthGrpc.newBlockingStub(channel).withDeadline(Deadline.after(30, TimeUnit.SECONDS));
    var watch = health.watch(HealthCheckRequest.getDefaultInstance());
    ServingStatus status;
    do {
      status = watch.next().getStatus();
      System.out.println("health: " + status);
    } while (status != ServingStatus.SERVING);
  }

  /** Stores the workflow of an order. Idempotent: a second call changes nothing. */
  private String create() {
    var instance =
        WorkflowInstance.newBuilder()
            .setId(UUID.randomUUID().toString())
            .setName(order)
            .setWorkflowDefinitionId("order")
            .setVersion(1)
            .setStatus(WorkflowStatus.WORKFLOW_STATUS_RUNNABLE)
            .setNextExecution(Long.MAX_VALUE)
            // JSON is sent as text, so a number keeps all its digits.
            .setDataJson(
                "{\"serial\": " + BEYOND_DOUBLE + ", \"total\": 12.50, \"paid\": false}")
            .setCreateTime(now())
            .addExecutionPointers(
                ExecutionPointer.newBuilder()
                    .setId("2")
                    .setStatus(PointerStatus.POINTER_STATUS_COMPLETE)
                    .setOutcomeJson("null"))
            .addExecutionPointers(
                ExecutionPointer.newBuilder()
                    .setId("1")
                    .setStepId(1)
                    .setStatus(PointerStatus.POINTER_STATUS_PENDING)
                    .setActive(true)
                    .setPredecessorId("2"));
    var request = CreateNewWorkflowRequest.newBuilder().setInstance(instance).build();
    workflows.createNewWorkflow(request);
    var created = workflows.createNewWorkflow(request);
    System.out.printf(
        "created %s as %s: revision %d%n", created.getId(), order, created.getRevision());
    var stored = load(created.getId());
    check(stored.getNextExecution() == Long.MAX_VALUE, "next_execution changed");
    System.out.printf(
        "loaded: revision %d, next_execution %d%n",
        stored.getRevision(), stored.getNextExecution());
    return created.getId();
  }

  private WorkflowInstance load(String id) {
    var request = GetWorkflowInstanceRequest.newBuilder().setId(id).build();
    return workflows.getWorkflowInstance(request).getInstance();
  }

  /** Loads, changes and persists a workflow; if another host wrote in between, it retries. */
  private long update(
      String id, Consumer<WorkflowInstance.Builder> change, EventSubscription... created) {
    while (true) {
      var workflow = load(id).toBuilder();
      var expected = workflow.getRevision();
      change.accept(workflow);
      try {
        return workflows
            .persistWorkflowWithSubscriptions(
                PersistWorkflowWithSubscriptionsRequest.newBuilder()
                    .setInstance(workflow)
                    .addAllSubscriptions(List.of(created))
                    .setExpectedRevision(expected)
                    .build())
            .getRevision();
      } catch (StatusRuntimeException e) {
        var failure = Failure.of(e);
        if (failure.reason() != ErrorReason.ERROR_REASON_REVISION_MISMATCH) {
          throw e;
        }
        System.out.printf(
            "revision %d is out of date, %s is stored: again%n",
            expected, failure.metadata().get("revision"));
      }
    }
  }

  /** Updates the order while another host does so too: neither change is lost. */
  private void change(String id) {
    var interfered = new boolean[1];
    var revision =
        update(
            id,
            workflow -> {
              if (!interfered[0]) { // the other host, between our load and our persist
                interfered[0] = true;
                var other = workflow.clone().setNextExecution(Long.MIN_VALUE);
                workflows.persistWorkflow(
                    PersistWorkflowRequest.newBuilder().setInstance(other).build());
              }
              // Gson keeps the digits of numbers that it does not convert.
              var data = JsonParser.parseString(workflow.getDataJson()).getAsJsonObject();
              data.addProperty("paid", true);
              workflow.setDataJson(data.toString());
            });
    System.out.println("changed: revision " + revision);
  }

  /** Shows the details of calls that fail. */
  private void refused(String id) {
    System.out.println(
        "refused: "
            + Failure.expect(
                ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND, () -> load("no-such-workflow")));
    var taken = CreateNewWorkflowRequest.newBuilder().setInstance(workflow(0).setName(order));
    System.out.println(
        "refused: "
            + Failure.expect(
                ErrorReason.ERROR_REASON_NAME_TAKEN,
                () -> workflows.createNewWorkflow(taken.build())));
    var bad = load(id).toBuilder();
    bad.getExecutionPointersBuilder(1).setOutcomeJson("NaN");
    var request = PersistWorkflowRequest.newBuilder().setInstance(bad).build();
    System.out.println(
        "refused: "
            + Failure.expect(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                () -> workflows.persistWorkflow(request)));
  }

  /** Makes the second step wait, and stores its subscription with it, all or nothing. */
  private String waitForEvent(String workflowId) {
    var subscription =
        EventSubscription.newBuilder()
            // Generated here, so that repeating the call does not create a second one.
            .setId(UUID.randomUUID().toString())
            .setWorkflowId(workflowId)
            .setStepId(1)
            .setExecutionPointerId("1")
            .setEventName("order.paid")
            .setEventKey(order)
            .setSubscribeAsOf(now())
            .build();
    update(
        workflowId,
        workflow ->
            workflow
                .getExecutionPointersBuilder(1)
                .setStatus(PointerStatus.POINTER_STATUS_WAITING_FOR_EVENT)
                .setActive(false)
                .setEventName(subscription.getEventName())
                .setEventKey(subscription.getEventKey()),
        subscription);
    System.out.println("waiting for order.paid: subscription " + subscription.getId());
    return subscription.getId();
  }

  /** Creates an event and delivers it to the workflows that wait for it. */
  private String deliverEvents() {
    var created =
        Event.newBuilder()
            .setId(UUID.randomUUID().toString())
            .setEventName("order.paid")
            .setEventKey(order)
            .setEventDataJson("{\"amount\": 12.50}")
            .setEventTime(now());
    var id = events.createEvent(CreateEventRequest.newBuilder().setEvent(created).build()).getId();
    var event = events.getEvent(GetEventRequest.newBuilder().setId(id).build()).getEvent();
    var firstOpen =
        GetFirstOpenSubscriptionRequest.newBuilder()
            .setEventName(event.getEventName())
            .setEventKey(event.getEventKey())
            .setAsOf(event.getEventTime())
            .build();
    var open = subscriptions.getFirstOpenSubscription(firstOpen);
    while (open.hasSubscription()) {
      deliver(event, open.getSubscription());
      open = subscriptions.getFirstOpenSubscription(firstOpen);
    }
    events.markEventProcessed(MarkEventProcessedRequest.newBuilder().setId(id).build());
    return id;
  }

  /** Delivers an event to one subscription, unless another worker holds it. */
  private void deliver(Event event, EventSubscription subscription) {
    var token =
        SetSubscriptionTokenRequest.newBuilder()
            .setId(subscription.getId())
            .setToken(UUID.randomUUID().toString())
            .setWorkerId(WORKER_ID)
            .setExpiry(Timestamps.add(now(), Durations.fromSeconds(30))); // if we crash
    if (!subscriptions.setSubscriptionToken(token.build()).getAcquired()) {
      return;
    }
    var revision =
        update(
            subscription.getWorkflowId(),
            workflow -> {
              for (var pointer : workflow.getExecutionPointersBuilderList()) {
                if (pointer.getId().equals(subscription.getExecutionPointerId())) {
                  pointer
                      .setEventPublished(true)
                      .setEventDataJson(event.getEventDataJson())
                      .setStatus(PointerStatus.POINTER_STATUS_COMPLETE)
                      .setEndTime(now());
                }
              }
              workflow.setStatus(WorkflowStatus.WORKFLOW_STATUS_COMPLETE).setCompleteTime(now());
            });
    System.out.printf(
        "delivered %s to %s: revision %d%n",
        event.getEventName(), subscription.getWorkflowId(), revision);
    subscriptions.terminateSubscription(
        TerminateSubscriptionRequest.newBuilder().setId(subscription.getId()).build());
  }

  /** Schedules a command, claims the due ones, handles them and completes them. */
  private void runCommands(String workflowId) {
    var command =
        ScheduledCommand.newBuilder()
            .setCommandName(CommandName.COMMAND_NAME_PROCESS_WORKFLOW)
            .setData(workflowId);
    for (var time : List.of(Long.MAX_VALUE, Long.MIN_VALUE)) { // the second replaces the first
      var schedule = ScheduleCommandRequest.newBuilder();
      commands.scheduleCommand(schedule.setCommand(command.setExecuteTime(time)).build());
    }
    var expected = command.build();
    var claim =
        ClaimCommandsRequest.newBuilder()
            .setLimit(10)
            .setLeaseDuration(Durations.fromSeconds(30))
            .setWorkerId(WORKER_ID);
    var mine = CompleteCommandsRequest.newBuilder();
    var others = ReleaseCommandsRequest.newBuilder();
    for (ClaimedCommand claimed : commands.claimCommands(claim.build()).getCommandsList()) {
      if (claimed.getCommand().equals(expected)) {
        mine.addLeaseTokens(claimed.getLeaseToken()); // handled: the workflow has ended
      } else {
        others.addLeaseTokens(claimed.getLeaseToken());
      }
    }
    commands.releaseCommands(others.build());
    check(mine.getLeaseTokensCount() == 1, "the command is not due");
    commands.completeCommands(mine.build());
    System.out.println("completed the command that was due at " + Long.MIN_VALUE);
    System.out.println(
        "refused: "
            + Failure.expect(
                ErrorReason.ERROR_REASON_LEASE_LOST,
                () -> commands.completeCommands(mine.build())));
  }

  /** Creates workflows at the limits of int64, pages through the due ones, and streams them all. */
  private List<String> batch() {
    Map<String, Long> times = new LinkedHashMap<>();
    for (var next :
        List.of(Long.MIN_VALUE, -BEYOND_DOUBLE, 0L, BEYOND_DOUBLE, Long.MAX_VALUE)) {
      var request = CreateNewWorkflowRequest.newBuilder().setInstance(workflow(next)).build();
      times.put(workflows.createNewWorkflow(request).getId(), next);
    }
    List<String> due = new ArrayList<>();
    var page = GetRunnableInstancesRequest.newBuilder().setAsAt(now()).setPageSize(2);
    do {
      var response = workflows.getRunnableInstances(page.build());
      due.addAll(response.getInstanceIdsList());
      page.setPageToken(response.getNextPageToken());
    } while (!page.getPageToken().isEmpty());
    System.out.printf("runnable: %d, in pages of 2%n", due.size());

    var request = GetWorkflowInstancesRequest.newBuilder().addAllIds(times.keySet()).build();
    workflows
        .getWorkflowInstances(request)
        .forEachRemaining(
            response -> {
              var workflow = response.getInstance();
              var next = workflow.getNextExecution();
              check(next == times.get(workflow.getId()), "next_execution changed");
              System.out.printf("streamed %s: next_execution %d%n", workflow.getId(), next);
            });
    return List.copyOf(times.keySet());
  }

  private static WorkflowInstance.Builder workflow(long nextExecution) {
    return WorkflowInstance.newBuilder()
        .setId(UUID.randomUUID().toString())
        .setWorkflowDefinitionId("batch")
        .setDataJson("{}")
        .setStatus(WorkflowStatus.WORKFLOW_STATUS_RUNNABLE)
        .setCreateTime(now())
        .setNextExecution(nextExecution);
  }

  private static Timestamp now() {
    var now = Instant.now();
    return Timestamp.newBuilder().setSeconds(now.getEpochSecond()).setNanos(now.getNano()).build();
  }

  private static void check(boolean holds, String otherwise) {
    if (!holds) {
      throw new IllegalStateException(otherwise);
    }
  }
}
