// Stores a workflow, reads it, and asks for one that there is not.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "wfe-persistence/gen/go/wfe/persistence/v1"
)

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	workflows := pb.NewWorkflowServiceClient(connection)
	created, err := workflows.CreateNewWorkflow(ctx, &pb.CreateNewWorkflowRequest{Instance: &pb.WorkflowInstance{
		WorkflowDefinitionId: "consumer",
		Version:              1,
		Status:               pb.WorkflowStatus_WORKFLOW_STATUS_RUNNABLE,
		DataJson:             `{"serial": 9007199254740993}`,
		CreateTime:           &timestamppb.Timestamp{Seconds: 1767225600},
		NextExecution:        proto.Int64(-9007199254740993),
	}})
	if err != nil {
		log.Fatal(err)
	}
	read, err := workflows.GetWorkflowInstance(ctx, &pb.GetWorkflowInstanceRequest{Id: created.Id})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(read.Instance.DataJson, read.Instance.GetNextExecution())
	_, err = workflows.GetWorkflowInstance(ctx, &pb.GetWorkflowInstanceRequest{Id: "no such"})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Println(status.Code(err), info.Reason)
		}
	}
}
