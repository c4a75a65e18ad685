package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	pb "wfe-persistence/examples/go/gen/wfe/persistence/v1"
)

// A countdown is the data of a workflow that counts down: how many steps are left, and how long each takes.
type countdown struct {
	Left   int `json:"left"`
	WorkMs int `json:"work_ms"`
}

// countDown takes one step of such a workflow, and enqueues it for the next one.
func countDown(ctx context.Context, work *Work) error {
	workflow := work.Workflow
	if workflow == nil || workflow.Status != pb.WorkflowStatus_WORKFLOW_STATUS_RUNNABLE {
		return nil
	}
	var data countdown
	if err := json.Unmarshal([]byte(workflow.DataJson), &data); err != nil {
		return err
	}
	fmt.Println("begin", workflow.Id, data.Left)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(data.WorkMs) * time.Millisecond):
	}
	data.Left--
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	workflow.DataJson = string(text)
	step := &pb.CommitWorkflowRequest{State: &pb.CommitWorkflowRequest_Instance{Instance: workflow}}
	if data.Left == 0 {
		workflow.Status = pb.WorkflowStatus_WORKFLOW_STATUS_COMPLETE
	} else {
		// An empty id stands for the workflow's.
		step.Enqueue = []*pb.QueueItem{{Queue: work.Item.Item.Queue}}
	}
	if err := work.Commit(ctx, step); err != nil {
		return err
	}
	fmt.Println("end", workflow.Id, data.Left)
	return nil
}

// count runs a worker on a queue of workflows that count down, until it is told to stop.
func count(arguments []string) error {
	flags := flag.NewFlagSet("worker", flag.ExitOnError)
	target := flags.String("target", "127.0.0.1:50052", "`HOST:PORT` of the server")
	queue := flags.String("queue", "countdown", "name of the queue")
	concurrency := flags.Int("concurrency", 2, "how many items to handle at a time")
	lease := flags.Int("lease-ms", 30_000, "how long others wait for the items of a worker that died")
	flags.Parse(arguments)
	conn, err := connect(*target)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	worker := &Worker{
		Queue:       *queue,
		Handle:      countDown,
		Concurrency: *concurrency,
		Lease:       time.Duration(*lease) * time.Millisecond,
		Wait:        time.Second,
		ID:          fmt.Sprintf("go-%d", os.Getpid()),
		OnError:     func(work *Work, err error) { fmt.Println("error", work.Item.Item.Id, err) },
		OnLost:      func(work *Work) { fmt.Println("lost", work.Item.Item.Id) },
		OnOutage:    func(err error) { fmt.Println("outage", err) },
	}
	return worker.Run(ctx, conn)
}
