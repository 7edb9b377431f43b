"""A provider for Terraform that knows a schema and nothing else (plugin protocol 6).

VERDICT_TF_SCHEMA names the file that generate.py wrote. With it terraform can validate, plan, test against a mock, and
apply for the sake of outputs: what AWS would compute is made up. VERDICT_TF_COMPUTED names a JSON file with what is to be
made up for which type: {"aws_db_instance": {"port": 5432}}. It talks to nobody but terraform.
"""

import base64
import json
import os
import tempfile
import threading
from concurrent import futures

import grpc
import msgpack
from tf.gen import grpc_controller_pb2 as controller
from tf.gen import grpc_controller_pb2_grpc as controller_rpc
from tf.gen import grpc_stdio_pb2_grpc as stdio_rpc
from tf.gen import tfplugin_pb2 as plugin
from tf.gen import tfplugin_pb2_grpc as rpc
from tf.runner import _self_signed_cert

NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}
SENSITIVE = {"secret_string", "password", "master_password", "auth_token"}
UNKNOWN = msgpack.ExtType(0, b"\x00")

with open(os.environ["VERDICT_TF_SCHEMA"], encoding="utf-8") as file:
    SCHEMA = json.load(file)
COMPUTED = {}
if path := os.environ.get("VERDICT_TF_COMPUTED"):
    with open(path, encoding="utf-8") as file:
        COMPUTED = json.load(file)
stopped = threading.Event()


def block(schema):
    return plugin.Schema.Block(
        attributes=[
            plugin.Schema.Attribute(
                name=name,
                type=json.dumps(attribute["type"]).encode(),
                required=attribute.get("required", False),
                optional=attribute.get("optional", False),
                computed=attribute.get("computed", False),
                sensitive=name in SENSITIVE,
            )
            for name, attribute in schema["attributes"].items()
        ],
        block_types=[
            plugin.Schema.NestedBlock(
                type_name=name,
                block=block(nested["block"]),
                nesting=NESTING[nested["nesting_mode"]],
                min_items=nested.get("min_items", 0),
                max_items=nested.get("max_items", 0),
            )
            for name, nested in schema.get("block_types", {}).items()
        ],
    )


def decode(value):
    if value.json:
        return json.loads(value.json)
    return msgpack.unpackb(value.msgpack, raw=False, strict_map_key=False, ext_hook=msgpack.ExtType)


def encode(value):
    return plugin.DynamicValue(msgpack=msgpack.packb(value, use_bin_type=True))


def made_up(owner, name, type_):
    """A value of the type for what AWS would have computed."""
    if name in COMPUTED.get(owner, {}):
        return COMPUTED[owner][name]
    if type_ == "string":
        return f"arn:aws:example:::{owner}" if name.endswith("arn") else f"{owner}-{name}"
    if type_ in ("number", "bool"):
        return 0 if type_ == "number" else False
    if isinstance(type_, list):
        if type_[0] == "object":
            return {member: made_up(owner, member, inner) for member, inner in type_[1].items()}
        return {} if type_[0] == "map" else [made_up(owner, name, type_[1])]
    return None


def is_unknown(value):
    return isinstance(value, msgpack.ExtType)


class Provider(rpc.ProviderServicer):
    answer = None

    def GetMetadata(self, request, context):
        return plugin.GetMetadata.Response(
            server_capabilities=plugin.ServerCapabilities(get_provider_schema_optional=True),
            resources=[plugin.GetMetadata.ResourceMetadata(type_name=name) for name in SCHEMA["resource_schemas"]],
            data_sources=[plugin.GetMetadata.DataSourceMetadata(type_name=name) for name in SCHEMA["data_source_schemas"]],
        )

    def GetProviderSchema(self, request, context):
        if Provider.answer is None:
            of = lambda schema: plugin.Schema(version=schema["version"], block=block(schema["block"]))  # noqa: E731
            Provider.answer = plugin.GetProviderSchema.Response(
                provider=of(SCHEMA["provider"]),
                resource_schemas={name: of(schema) for name, schema in SCHEMA["resource_schemas"].items()},
                data_source_schemas={name: of(schema) for name, schema in SCHEMA["data_source_schemas"].items()},
            )
        return Provider.answer

    def ValidateProviderConfig(self, request, context):
        return plugin.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):
        return plugin.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):
        return plugin.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):
        return plugin.ConfigureProvider.Response()

    def UpgradeResourceState(self, request, context):
        return plugin.UpgradeResourceState.Response(upgraded_state=encode(json.loads(request.raw_state.json)))

    def ReadResource(self, request, context):
        return plugin.ReadResource.Response(new_state=request.current_state, private=request.private)

    def PlanResourceChange(self, request, context):
        planned = decode(request.proposed_new_state)
        if planned is None:
            return plugin.PlanResourceChange.Response(planned_state=request.proposed_new_state, legacy_type_system=True)
        if decode(request.prior_state) is None:
            for name, attribute in SCHEMA["resource_schemas"][request.type_name]["block"]["attributes"].items():
                if attribute.get("computed") and planned.get(name) is None:
                    planned[name] = UNKNOWN
        return plugin.PlanResourceChange.Response(planned_state=encode(planned), legacy_type_system=True)

    def ApplyResourceChange(self, request, context):
        state = decode(request.planned_state)
        if state is not None:
            attributes = SCHEMA["resource_schemas"][request.type_name]["block"]["attributes"]
            for name, value in state.items():
                if is_unknown(value):
                    state[name] = made_up(request.type_name, name, attributes[name]["type"])
        return plugin.ApplyResourceChange.Response(new_state=encode(state), legacy_type_system=True)

    def ReadDataSource(self, request, context):
        state = decode(request.config)
        for name, attribute in SCHEMA["data_source_schemas"][request.type_name]["block"]["attributes"].items():
            if state.get(name) is None and attribute.get("computed"):
                state[name] = made_up(request.type_name, name, attribute["type"])
        return plugin.ReadDataSource.Response(state=encode(state))

    def GetFunctions(self, request, context):
        return plugin.GetFunctions.Response()

    def StopProvider(self, request, context):
        stopped.set()
        return plugin.StopProvider.Response()


class Controller(controller_rpc.GRPCControllerServicer):
    def Shutdown(self, request, context):
        stopped.set()
        return controller.Empty()


class Stdio(stdio_rpc.GRPCStdioServicer):
    def StreamStdio(self, request, context):
        return iter([])


def main():
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(16), options=unlimited)
    rpc.add_ProviderServicer_to_server(Provider(), server)
    controller_rpc.add_GRPCControllerServicer_to_server(Controller(), server)
    stdio_rpc.add_GRPCStdioServicer_to_server(Stdio(), server)
    chain, credentials = _self_signed_cert()
    with tempfile.TemporaryDirectory() as directory:
        socket = f"{directory}/provider.sock"
        server.add_secure_port(f"unix://{socket}", credentials)
        server.start()
        certificate = base64.b64encode(chain).decode().rstrip("=")
        print("|".join(["1", "6", "unix", socket, "grpc", certificate]), flush=True)
        stopped.wait()
        server.stop(0.2)


if __name__ == "__main__":
    main()
