package main

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "wfe-persistence/examples/go/gen/wfe/persistence/v1"
)

// A Worker takes items from a queue, has them handled, and says what became of them.
//
// Each of its slots asks for an item, has it handled, and settles it when it asks for the next one. So a
// step whose handler commits is two calls: Dequeue, which brings the item and its workflow, and
// CommitWorkflow, which stores the step and acknowledges the item.
type Worker struct {
	Queue string
	// Handle handles an item. Its context is cancelled if the lease on the item is lost. If it fails, the
	// item comes again: after 1 s, twice as long with each attempt, but at most 60 s.
	Handle func(context.Context, *Work) error
	// Concurrency is how many items to handle at a time.
	Concurrency int
	// Lease is how long others wait for the items of a worker that died.
	Lease time.Duration
	// Wait is how long one call waits for an item, and the end of Run for that call.
	Wait time.Duration
	// ID is how the worker calls itself, for people who inspect queues.
	ID string

	// OnError, OnLost and OnOutage are told what goes wrong: a handler failed; a lease was lost, so another
	// worker may have handled the item at the same time; the store failed, and is asked again after a pause.
	OnError  func(*Work, error)
	OnLost   func(*Work)
	OnOutage func(error)

	queues    pb.QueueServiceClient
	workflows pb.WorkflowServiceClient
}

// A Work is an item in the hands of a handler.
type Work struct {
	Item *pb.DequeuedItem
	// Workflow has the item's id, and was read with it; nil: there is none.
	Workflow *pb.WorkflowInstance

	workflows pb.WorkflowServiceClient
	// A renewal must not take the acknowledgement by a commit for a loss.
	committing sync.RWMutex
	committed  bool
	lost       atomic.Bool
}

// Commit stores the workflow, or a patch to it, with the effects of the step, and acknowledges the item,
// all in one transaction. It is refused if the lease is lost, or the workflow was written since it was
// read. Without a commit, the item is acknowledged when the handler returns.
func (w *Work) Commit(ctx context.Context, step *pb.CommitWorkflowRequest) error {
	w.committing.Lock()
	defer w.committing.Unlock()
	if step.ExpectedRevision == nil && w.Workflow != nil {
		step.ExpectedRevision = &w.Workflow.Revision
	}
	if step.RequestId == "" {
		step.RequestId = uuid.NewString() // so that the write can be repeated after a lost response
	}
	step.Acknowledge = append(step.Acknowledge, &pb.Acknowledgement{Receipt: w.Item.Receipt})
	_, err := w.workflows.CommitWorkflow(ctx, step)
	// One of the locks or claims of the step may be lost instead.
	if f := failure(err); f.Reason == pb.ErrorReason_ERROR_REASON_LEASE_LOST &&
		strings.HasPrefix(f.Metadata["field"], "acknowledge") {
		w.lost.Store(true)
	}
	w.committed = w.committed || err == nil
	return err
}

// settled is what became of the item that a slot has handled last, and is to be sent.
type settled struct {
	work        *Work
	acknowledge []*pb.Acknowledgement
	returned    []*pb.ReturnedItem
	// uncertain: it may have been applied already, because a response was lost.
	uncertain bool
}

// Run handles items until the context is done, and then finishes those in hand. A call that waits for an
// item is not broken off, because it might take one. It fails with an error that another attempt would not
// change.
func (w *Worker) Run(ctx context.Context, conn grpc.ClientConnInterface) error {
	w.queues, w.workflows = pb.NewQueueServiceClient(conn), pb.NewWorkflowServiceClient(conn)
	stopping, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var slots sync.WaitGroup
	for range w.Concurrency {
		slots.Add(1)
		go func() {
			defer slots.Done()
			if err := w.slot(stopping); err != nil {
				stop(err)
			}
		}()
	}
	slots.Wait()
	if ctx.Err() == nil {
		return context.Cause(stopping)
	}
	return nil
}

func (w *Worker) slot(stopping context.Context) error {
	calls := context.WithoutCancel(stopping)
	var last settled
	for outages := 0; stopping.Err() == nil; {
		work, err := w.take(calls, last)
		switch {
		case err == nil && work == nil:
			outages, last = 0, settled{}
			rest(stopping, 50*time.Millisecond) // a server may end a wait early
		case err == nil:
			outages, last = 0, w.handle(calls, work)
		case failure(err).Reason == pb.ErrorReason_ERROR_REASON_LEASE_LOST:
			// Nothing was handed out. If it was applied before, nothing was lost either.
			if last.work != nil && !last.uncertain {
				w.OnLost(last.work)
			}
			last = settled{}
		case isLasting(err):
			w.settle(calls, last)
			return err
		default:
			last.uncertain = true
			w.OnOutage(err)
			pause := min(100*time.Millisecond<<min(outages, 10), 5*time.Second)
			outages++
			rest(stopping, pause/2+rand.N(pause/2)) // not all workers at the same time
		}
	}
	w.settle(calls, last)
	return nil
}

func rest(stopping context.Context, pause time.Duration) {
	select {
	case <-stopping.Done():
	case <-time.After(pause):
	}
}

// isLasting tells whether an error would be the same the next time.
func isLasting(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unimplemented:
		return true
	}
	return false
}

func (w *Worker) take(ctx context.Context, last settled) (*Work, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Wait+10*time.Second)
	defer cancel()
	dequeued, err := w.queues.Dequeue(ctx, &pb.DequeueRequest{
		Queues:          []string{w.Queue},
		LeaseDuration:   durationpb.New(w.Lease),
		WorkerId:        w.ID,
		Acknowledge:     last.acknowledge,
		ReturnItems:     last.returned,
		IncludeWorkflow: true,
		Wait:            durationpb.New(w.Wait),
	})
	if err != nil || len(dequeued.Items) == 0 {
		return nil, err
	}
	item := dequeued.Items[0]
	return &Work{Item: item, Workflow: item.Workflow, workflows: w.workflows}, nil
}

// handle has an item handled, and returns what is to be said of it.
func (w *Worker) handle(ctx context.Context, work *Work) settled {
	ctx, cancel := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Add(1)
	go func() {
		defer renewing.Done()
		w.renew(ctx, cancel, work)
	}()
	err := w.load(ctx, work)
	if err == nil {
		err = w.Handle(ctx, work)
	}
	cancel()
	renewing.Wait()
	switch {
	case work.lost.Load():
		w.OnLost(work)
		return settled{}
	case err != nil:
		w.OnError(work, err)
	}
	if work.committed {
		return settled{}
	}
	if err == nil {
		return settled{work: work, acknowledge: []*pb.Acknowledgement{{Receipt: work.Item.Receipt}}}
	}
	delay := min(time.Second<<min(work.Item.Attempt-1, 10), time.Minute)
	// A commit whose outcome is not known may have acknowledged it.
	_, uncertain := status.FromError(err)
	returned := []*pb.ReturnedItem{{Receipt: work.Item.Receipt, Delay: durationpb.New(delay)}}
	return settled{work: work, returned: returned, uncertain: uncertain}
}

// load loads the workflow of an item, if it did not fit in a response together with it.
func (w *Worker) load(ctx context.Context, work *Work) error {
	if !work.Item.WorkflowOmitted {
		return nil
	}
	response, err := w.workflows.GetWorkflowInstance(ctx, &pb.GetWorkflowInstanceRequest{Id: work.Item.Item.Id})
	work.Workflow = response.GetInstance()
	return err
}

// renew renews the lease on an item until the context is done, and cancels it if the lease is lost.
func (w *Worker) renew(ctx context.Context, cancel context.CancelFunc, work *Work) {
	ticker := time.NewTicker(w.Lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !work.committing.TryRLock() {
			continue // a commit is under way, which acknowledges it
		}
		committed := work.committed
		var err error
		if !committed {
			_, err = w.queues.RenewItems(ctx, &pb.RenewItemsRequest{
				Receipts:      []string{work.Item.Receipt},
				LeaseDuration: durationpb.New(w.Lease),
			})
		}
		work.committing.RUnlock()
		// Any other error may pass before the lease expires.
		if committed || failure(err).Reason == pb.ErrorReason_ERROR_REASON_LEASE_LOST {
			work.lost.Store(!committed)
			if !committed {
				cancel()
			}
			return
		}
	}
}

// settle says what became of the last item; otherwise it comes back when its lease expires.
func (w *Worker) settle(ctx context.Context, last settled) {
	var err error
	if len(last.acknowledge) > 0 {
		_, err = w.queues.Acknowledge(ctx, &pb.AcknowledgeRequest{Acknowledge: last.acknowledge})
	} else if len(last.returned) > 0 {
		_, err = w.queues.ReturnItems(ctx, &pb.ReturnItemsRequest{ReturnItems: last.returned})
	}
	switch {
	case err == nil:
	case failure(err).Reason != pb.ErrorReason_ERROR_REASON_LEASE_LOST:
		w.OnOutage(err)
	case !last.uncertain:
		w.OnLost(last.work)
	}
}
