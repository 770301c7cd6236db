"""grpcio's clients of the services that every gRPC server may have: health and reflection."""

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "inference.GRPCInferenceService"


def checks(url):
    with grpc.insecure_channel(url) as channel:

        def health():
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "add"):
                reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
                assert reply.status == health_pb2.HealthCheckResponse.SERVING, service
            try:
                stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND, error
            else:
                raise AssertionError("an unknown model is healthy")

        def reflection():
            database = ProtoReflectionDescriptorDatabase(channel)
            services = set(database.get_services())
            assert {SERVICE, "grpc.health.v1.Health"} <= services, services
            # Its own pool: the default one has tritonclient's messages of the same names.
            service = DescriptorPool(database).FindServiceByName(SERVICE)
            methods = service.methods_by_name
            assert methods["ModelInfer"].input_type.fields_by_name["raw_input_contents"], methods
            assert methods["ModelStreamInfer"].server_streaming, methods

        yield "grpcio", health
        yield "grpcio", reflection
