// Stores a workflow, reads it, and asks for one that there is not.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { WorkflowService, WorkflowStatus, type WorkflowInstance } from "wfe-persistence-stubs";
import { ErrorInfoSchema } from "wfe-persistence-stubs/google/rpc/error_details_pb";
import { Health, HealthCheckResponse_ServingStatus } from "wfe-persistence-stubs/grpc/health/v1/health_pb";

const transport = createGrpcTransport({ baseUrl: `http://${process.argv[2]}` });
const health = await createClient(Health, transport).check({});
if (health.status !== HealthCheckResponse_ServingStatus.SERVING) throw new Error("not SERVING");

const workflows = createClient(WorkflowService, transport);
const { id } = await workflows.createNewWorkflow({
  instance: {
    workflowDefinitionId: "consumer",
    version: 1,
    status: WorkflowStatus.RUNNABLE,
    dataJson: '{"serial": 9007199254740993}',
    createTime: { seconds: 1767225600n, nanos: 0 },
    nextExecution: -9007199254740993n,
  },
});
const instance: WorkflowInstance | undefined = (await workflows.getWorkflowInstance({ id })).instance;
console.log(instance?.dataJson, instance?.nextExecution?.toString());
try {
  await workflows.getWorkflowInstance({ id: "no such" });
} catch (error) {
  const failure = ConnectError.from(error);
  console.log(Code[failure.code], failure.findDetails(ErrorInfoSchema)[0]?.reason);
}
