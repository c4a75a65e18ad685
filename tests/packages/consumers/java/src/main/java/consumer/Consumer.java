package consumer;

import com.google.protobuf.Any;
import com.google.protobuf.Timestamp;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import wfe.persistence.v1.CreateNewWorkflowRequest;
import wfe.persistence.v1.GetWorkflowInstanceRequest;
import wfe.persistence.v1.WorkflowInstance;
import wfe.persistence.v1.WorkflowServiceGrpc;
import wfe.persistence.v1.WorkflowStatus;

/** Stores a workflow, reads it, and asks for one that there is not. */
public final class Consumer {
  public static void main(String[] arguments) throws Exception {
    var channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    var workflows = WorkflowServiceGrpc.newBlockingStub(channel);
    var id =
        workflows
            .createNewWorkflow(
                CreateNewWorkflowRequest.newBuilder()
                    .setInstance(
                        WorkflowInstance.newBuilder()
                            .setWorkflowDefinitionId("consumer")
                            .setVersion(1)
                            .setStatus(WorkflowStatus.WORKFLOW_STATUS_RUNNABLE)
                            .setDataJson("{\"serial\": 9007199254740993}")
                            .setCreateTime(Timestamp.newBuilder().setSeconds(1767225600))
                            .setNextExecution(-9007199254740993L))
                    .build())
            .getId();
    var instance =
        workflows
            .getWorkflowInstance(GetWorkflowInstanceRequest.newBuilder().setId(id).build())
            .getInstance();
    System.out.println(instance.getDataJson() + " " + instance.getNextExecution());
    try {
      workflows.getWorkflowInstance(GetWorkflowInstanceRequest.newBuilder().setId("no such").build());
    } catch (StatusRuntimeException e) {
      for (Any detail : StatusProto.fromThrowable(e).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          System.out.println("NotFound " + detail.unpack(ErrorInfo.class).getReason());
        }
      }
    }
    channel.shutdownNow();
  }
}
