package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "wfe-persistence/examples/go/gen/wfe/persistence/v1"
)

// workerID identifies this worker to people who inspect the store.
const workerID = "go-host"

// Summary lists what a run has created.
type Summary struct {
	WorkflowID     string   `json:"workflow_id"`
	EventID        string   `json:"event_id"`
	SubscriptionID string   `json:"subscription_id"`
	BatchIDs       []string `json:"batch_ids"`
	Revision       int64    `json:"revision,string"`
}

type host struct {
	workflows     pb.WorkflowServiceClient
	events        pb.EventServiceClient
	subscriptions pb.SubscriptionServiceClient
	commands      pb.ScheduledCommandServiceClient
	order         string // the order number, new in each run
}

func newHost(conn *grpc.ClientConn) *host {
	return &host{
		workflows:     pb.NewWorkflowServiceClient(conn),
		events:        pb.NewEventServiceClient(conn),
		subscriptions: pb.NewSubscriptionServiceClient(conn),
		commands:      pb.NewScheduledCommandServiceClient(conn),
		order:         "go-" + uuid.NewString(),
	}
}

// waitUntilServing watches the server's health until it is ready, also while it starts. Without a
// server that listens, it fails at once: a call waits for a connection only if it is told to.
func waitUntilServing(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	watch, err := health.NewHealthClient(conn).Watch(ctx, &health.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("no connection to %s: %s", conn.Target(), status.Convert(err).Message())
	}
	for {
		response, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("no health from %s: %s", conn.Target(), status.Convert(err).Message())
		}
		log.Print("health: ", response.Status)
		if response.Status == health.HealthCheckResponse_SERVING {
			return nil
		}
	}
}

func (h *host) run(ctx context.Context) (*Summary, error) {
	var s Summary
	steps := []func(context.Context, *Summary) error{
		h.create, h.change, h.refused, h.waitForEvent, h.deliverEvents, h.runCommands, h.batch,
	}
	for _, step := range steps {
		if err := step(ctx, &s); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

// create stores the workflow of an order. Idempotent: a second call changes nothing.
func (h *host) create(ctx context.Context, s *Summary) error {
	request := &pb.CreateNewWorkflowRequest{Instance: &pb.WorkflowInstance{
		Id:                   uuid.NewString(),
		Name:                 h.order,
		WorkflowDefinitionId: "order",
		Version:              1,
		Status:               pb.WorkflowStatus_WORKFLOW_STATUS_RUNNABLE,
		NextExecution:        proto.Int64(math.MaxInt64),
		// JSON is sent as text, so a number keeps all its digits: this one is 2^53+1.
		DataJson:   `{"serial": 9007199254740993, "total": 12.50, "paid": false}`,
		CreateTime: timestamppb.Now(),
		ExecutionPointers: []*pb.ExecutionPointer{
			{Id: "2", StepId: 0, Status: pb.PointerStatus_POINTER_STATUS_COMPLETE, OutcomeJson: proto.String("null")},
			{Id: "1", StepId: 1, Status: pb.PointerStatus_POINTER_STATUS_PENDING, Active: true, PredecessorId: proto.String("2")},
		},
	}}
	for range 2 {
		response, err := h.workflows.CreateNewWorkflow(ctx, request)
		if err != nil {
			return err
		}
		s.WorkflowID, s.Revision = response.Id, response.Revision
	}
	log.Printf("created %s as %s", s.WorkflowID, h.order)
	stored, err := h.load(ctx, s.WorkflowID)
	if err != nil {
		return err
	}
	if stored.GetNextExecution() != math.MaxInt64 {
		return fmt.Errorf("next_execution came back as %d", stored.GetNextExecution())
	}
	log.Printf("loaded: revision %d, next_execution %d", stored.Revision, stored.GetNextExecution())
	return nil
}

func (h *host) load(ctx context.Context, id string) (*pb.WorkflowInstance, error) {
	response, err := h.workflows.GetWorkflowInstance(ctx, &pb.GetWorkflowInstanceRequest{Id: id})
	return response.GetInstance(), err
}

// update loads, changes and persists a workflow; if another host wrote in between, it retries.
func (h *host) update(ctx context.Context, id string, change func(*pb.WorkflowInstance) error,
	subscriptions ...*pb.EventSubscription,
) (*pb.PersistWorkflowWithSubscriptionsResponse, error) {
	for {
		workflow, err := h.load(ctx, id)
		if err != nil {
			return nil, err
		}
		expected := workflow.Revision
		if err := change(workflow); err != nil {
			return nil, err
		}
		response, err := h.workflows.PersistWorkflowWithSubscriptions(ctx, &pb.PersistWorkflowWithSubscriptionsRequest{
			Instance: workflow, Subscriptions: subscriptions, ExpectedRevision: &expected,
		})
		f := failure(err)
		if f.Reason != pb.ErrorReason_ERROR_REASON_REVISION_MISMATCH {
			return response, err
		}
		log.Printf("revision %d is out of date, %s is stored: again", expected, f.Metadata["revision"])
	}
}

// change updates the order while another host does so too: neither change is lost.
func (h *host) change(ctx context.Context, s *Summary) error {
	interfered := false
	response, err := h.update(ctx, s.WorkflowID, func(workflow *pb.WorkflowInstance) error {
		if !interfered { // the other host, between our load and our persist
			interfered = true
			other := proto.CloneOf(workflow)
			other.NextExecution = proto.Int64(math.MinInt64)
			_, err := h.workflows.PersistWorkflow(ctx, &pb.PersistWorkflowRequest{Instance: other})
			if err != nil {
				return err
			}
		}
		data, err := withMember(workflow.DataJson, "paid", true)
		workflow.DataJson = data
		return err
	})
	if err == nil {
		log.Printf("changed: revision %d", response.Revision)
	}
	return err
}

// withMember sets a member of a JSON object; UseNumber keeps the other members' numbers exact.
func withMember(text, name string, value any) (string, error) {
	decoder := json.NewDecoder(bytes.NewBufferString(text))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return "", err
	}
	object[name] = value
	changed, err := json.Marshal(object)
	return string(changed), err
}

// refused shows the details of calls that fail.
func (h *host) refused(ctx context.Context, s *Summary) error {
	_, err := h.load(ctx, "no-such-workflow")
	f, err := expect(err, pb.ErrorReason_ERROR_REASON_WORKFLOW_NOT_FOUND)
	if err != nil {
		return err
	}
	log.Print("refused: ", f)

	taken := h.workflow(0)
	taken.Name = h.order
	_, err = h.workflows.CreateNewWorkflow(ctx, &pb.CreateNewWorkflowRequest{Instance: taken})
	if f, err = expect(err, pb.ErrorReason_ERROR_REASON_NAME_TAKEN); err != nil {
		return err
	}
	log.Print("refused: ", f)

	workflow, err := h.load(ctx, s.WorkflowID)
	if err != nil {
		return err
	}
	workflow.ExecutionPointers[1].OutcomeJson = proto.String("NaN")
	_, err = h.workflows.PersistWorkflow(ctx, &pb.PersistWorkflowRequest{Instance: workflow})
	if f, err = expect(err, pb.ErrorReason_ERROR_REASON_INVALID_FIELD); err != nil {
		return err
	}
	log.Print("refused: ", f)
	return nil
}

// waitForEvent makes the second step wait, and stores its subscription with it, all or nothing.
func (h *host) waitForEvent(ctx context.Context, s *Summary) error {
	s.SubscriptionID = uuid.NewString() // generated here, so that repeating the call does not create a second one
	_, err := h.update(ctx, s.WorkflowID, func(workflow *pb.WorkflowInstance) error {
		waiting := workflow.ExecutionPointers[1]
		waiting.Status = pb.PointerStatus_POINTER_STATUS_WAITING_FOR_EVENT
		waiting.Active = false
		waiting.EventName, waiting.EventKey = proto.String("order.paid"), &h.order
		return nil
	}, &pb.EventSubscription{
		Id: s.SubscriptionID, WorkflowId: s.WorkflowID, StepId: 1, ExecutionPointerId: "1",
		EventName: "order.paid", EventKey: h.order, SubscribeAsOf: timestamppb.Now(),
	})
	if err == nil {
		log.Printf("waiting for order.paid: subscription %s", s.SubscriptionID)
	}
	return err
}

// deliverEvents creates an event and delivers it to the workflows that wait for it.
func (h *host) deliverEvents(ctx context.Context, s *Summary) error {
	created, err := h.events.CreateEvent(ctx, &pb.CreateEventRequest{Event: &pb.Event{
		Id: uuid.NewString(), EventName: "order.paid", EventKey: h.order,
		EventDataJson: `{"amount": 12.50}`, EventTime: timestamppb.Now(),
	}})
	if err != nil {
		return err
	}
	s.EventID = created.Id
	response, err := h.events.GetEvent(ctx, &pb.GetEventRequest{Id: s.EventID})
	if err != nil {
		return err
	}
	event := response.Event
	for {
		open, err := h.subscriptions.GetFirstOpenSubscription(ctx, &pb.GetFirstOpenSubscriptionRequest{
			EventName: event.EventName, EventKey: event.EventKey, AsOf: event.EventTime,
		})
		if err != nil {
			return err
		}
		if open.Subscription == nil { // no more open subscriptions
			break
		}
		if err := h.deliver(ctx, event, open.Subscription, s); err != nil {
			return err
		}
	}
	_, err = h.events.MarkEventProcessed(ctx, &pb.MarkEventProcessedRequest{Id: event.Id})
	return err
}

// deliver delivers an event to one subscription, unless another worker holds it.
func (h *host) deliver(ctx context.Context, event *pb.Event, subscription *pb.EventSubscription, s *Summary) error {
	taken, err := h.subscriptions.SetSubscriptionToken(ctx, &pb.SetSubscriptionTokenRequest{
		Id: subscription.Id, Token: uuid.NewString(), WorkerId: workerID,
		Expiry: timestamppb.New(time.Now().Add(30 * time.Second)), // if we crash, others may claim it
	})
	if err != nil || !taken.Acquired {
		return err
	}
	response, err := h.update(ctx, subscription.WorkflowId, func(workflow *pb.WorkflowInstance) error {
		for _, pointer := range workflow.ExecutionPointers {
			if pointer.Id == subscription.ExecutionPointerId {
				pointer.EventPublished = true
				pointer.EventDataJson = &event.EventDataJson
				pointer.Status = pb.PointerStatus_POINTER_STATUS_COMPLETE
				pointer.EndTime = timestamppb.Now()
			}
		}
		workflow.Status = pb.WorkflowStatus_WORKFLOW_STATUS_COMPLETE
		workflow.CompleteTime = timestamppb.Now()
		return nil
	})
	if err != nil {
		return err
	}
	s.Revision = response.Revision
	log.Printf("delivered %s to %s: revision %d", event.EventName, subscription.WorkflowId, response.Revision)
	_, err = h.subscriptions.TerminateSubscription(ctx, &pb.TerminateSubscriptionRequest{Id: subscription.Id})
	return err
}

// runCommands schedules a command, claims the due ones, handles them and completes them.
func (h *host) runCommands(ctx context.Context, s *Summary) error {
	for _, executeTime := range []int64{math.MaxInt64, math.MinInt64} { // the second replaces the first
		_, err := h.commands.ScheduleCommand(ctx, &pb.ScheduleCommandRequest{Command: &pb.ScheduledCommand{
			CommandName: pb.CommandName_COMMAND_NAME_PROCESS_WORKFLOW, Data: s.WorkflowID, ExecuteTime: executeTime,
		}})
		if err != nil {
			return err
		}
	}
	claimed, err := h.commands.ClaimCommands(ctx, &pb.ClaimCommandsRequest{
		WorkerId: workerID, Limit: 10, LeaseDuration: durationpb.New(30 * time.Second),
	})
	if err != nil {
		return err
	}
	var mine []string
	for _, c := range claimed.Commands {
		if c.Command.Data == s.WorkflowID && c.Command.ExecuteTime == math.MinInt64 {
			mine = append(mine, c.LeaseToken) // handled: the workflow has ended
			continue
		}
		request := &pb.ReleaseCommandsRequest{LeaseTokens: []string{c.LeaseToken}}
		if _, err := h.commands.ReleaseCommands(ctx, request); err != nil {
			return err
		}
	}
	if len(mine) != 1 {
		return fmt.Errorf("claimed %v", claimed.Commands)
	}
	request := &pb.CompleteCommandsRequest{LeaseTokens: mine}
	if _, err = h.commands.CompleteCommands(ctx, request); err != nil {
		return err
	}
	log.Printf("completed the command that was due at %d", int64(math.MinInt64))
	_, err = h.commands.CompleteCommands(ctx, request)
	f, err := expect(err, pb.ErrorReason_ERROR_REASON_LEASE_LOST)
	log.Print("refused: ", f)
	return err
}

func (h *host) workflow(nextExecution int64) *pb.WorkflowInstance {
	return &pb.WorkflowInstance{
		Id: uuid.NewString(), WorkflowDefinitionId: "batch", DataJson: "{}",
		Status: pb.WorkflowStatus_WORKFLOW_STATUS_RUNNABLE, CreateTime: timestamppb.Now(),
		NextExecution: &nextExecution,
	}
}

// batch creates workflows at the limits of int64, pages through the due ones, and streams them all.
func (h *host) batch(ctx context.Context, s *Summary) error {
	times := map[string]int64{}
	for _, next := range []int64{math.MinInt64, -(1<<53 + 1), 0, 1<<53 + 1, math.MaxInt64} {
		created, err := h.workflows.CreateNewWorkflow(ctx, &pb.CreateNewWorkflowRequest{Instance: h.workflow(next)})
		if err != nil {
			return err
		}
		s.BatchIDs = append(s.BatchIDs, created.Id)
		times[created.Id] = next
	}
	var due []string
	request := &pb.GetRunnableInstancesRequest{AsAt: timestamppb.Now(), PageSize: 2}
	for {
		page, err := h.workflows.GetRunnableInstances(ctx, request)
		if err != nil {
			return err
		}
		due = append(due, page.InstanceIds...)
		if page.NextPageToken == "" {
			break
		}
		request.PageToken = page.NextPageToken
	}
	log.Printf("runnable: %d, in pages of 2", len(due))

	stream, err := h.workflows.GetWorkflowInstances(ctx, &pb.GetWorkflowInstancesRequest{Ids: s.BatchIDs})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		workflow := response.Instance
		if workflow.GetNextExecution() != times[workflow.Id] {
			return fmt.Errorf("%s: next_execution came back as %d", workflow.Id, workflow.GetNextExecution())
		}
		log.Printf("streamed %s: next_execution %d", workflow.Id, workflow.GetNextExecution())
	}
}
