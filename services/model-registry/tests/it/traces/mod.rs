//! Traces, their spans and what is thought of them: by MLflow's REST API, over OTLP and by gRPC, on one store.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use verdict_api::registry as api;
use verdict_api::registry::assessment::Judgement;
use verdict_api::registry::trace_service_client::TraceServiceClient;
use verdict_chassis::client::Channel;
use verdict_testkit::net::{send, send_with};

use crate::mlflow::on_both;
use crate::world::{World, reason};

mod limits;

on_both!(
    what_rest_and_otlp_write_grpc_reads_and_the_other_way,
    spans_make_a_trace_in_whatever_order_they_come,
    traces_are_found_by_what_they_are,
    pages_show_each_trace_once,
    clients_of_the_second_version_begin_end_and_keep_a_file,
    assessments_override_each_other,
    deleted_traces_leave_nothing,
);

const V3: &str = "/api/3.0/mlflow/traces";
const V2: &str = "/api/2.0/mlflow/traces";

fn client(world: &World) -> TraceServiceClient<Channel> {
    TraceServiceClient::new(world.channel.clone())
}

async fn call(world: &World, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest(method, path, body).await;
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

/// A trace with this many milliseconds since 1970.
fn trace(id: &str, millis: i64) -> Value {
    let time = format!("1970-01-01T00:00:{:02}.{:03}Z", millis / 1000, millis % 1000);
    json!({"trace": {"trace_info": {
        "trace_id": id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "request_time": time,
        "execution_duration": "1.500s",
        "state": "OK",
    }}})
}

async fn search(world: &World, filter: &str, order: &str) -> Vec<String> {
    let order: Vec<&str> = if order.is_empty() { vec![] } else { vec![order] };
    let locations = json!([{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]);
    let search = json!({"locations": locations, "filter": filter, "order_by": order});
    let found = call(world, "POST", &format!("{V3}/search"), search).await;
    found["traces"].as_array().unwrap().iter().map(|one| one["trace_id"].as_str().unwrap().to_owned()).collect()
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Number(number) if number.is_i64() => any_value::Value::IntValue(number.as_i64().unwrap()),
        Value::Number(number) => any_value::Value::DoubleValue(number.as_f64().unwrap()),
        Value::Bool(truth) => any_value::Value::BoolValue(truth),
        Value::String(text) => any_value::Value::StringValue(text),
        other => any_value::Value::StringValue(other.to_string()),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A span of trace `trace`, from `start` for 10 milliseconds; `parent` 0 makes it the root.
fn span(trace: u8, id: u8, parent: u8, start: u64, attributes: &[(&str, Value)]) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: format!("span-{id}"),
        start_time_unix_nano: start * 1_000_000,
        end_time_unix_nano: (start + 10) * 1_000_000,
        attributes: attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect(),
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");
const EXPERIMENT: (&str, &str) = ("x-mlflow-experiment-id", "0");

async fn export(world: &World, spans: Vec<Span>) {
    let body = request(spans).encode_to_vec();
    let answer = send_with(world.mlflow, "POST", "/v1/traces", &[PROTOBUF, EXPERIMENT], &body).await.unwrap();
    assert_eq!(answer.0, 200, "{}", String::from_utf8_lossy(&answer.1));
}

fn named(trace: u8) -> String {
    format!("tr-{}", format!("{trace:02x}").repeat(16))
}

async fn what_rest_and_otlp_write_grpc_reads_and_the_other_way(world: &World) {
    let id = named(1);
    let inputs = json!({"question": "why?", "deep": [1, 2.5, null, true]});
    export(world, vec![span(1, 1, 0, 1_000, &[("mlflow.spanInputs", inputs.clone()), ("n", json!(7))])]).await;
    let mut started = trace(&id, 1_000);
    started["trace"]["trace_info"]["tags"] = json!({"team": "risk"});
    started["trace"]["trace_info"]["trace_metadata"] = json!({"mlflow.trace.session": "s1"});
    started["trace"]["trace_info"]["request_preview"] = json!("why?");
    call(world, "POST", V3, started).await;
    let feedback = json!({"assessment": {"assessment_name": "good", "feedback": {"value": {"rating": 4}},
        "source": {"source_type": "HUMAN", "source_id": "reviewer"}}});
    call(world, "POST", &format!("{V3}/{id}/assessments"), feedback).await;

    let mut health = HealthClient::new(world.channel.clone());
    let service = HealthCheckRequest { service: "verdict.registry.v1.TraceService".to_owned() };
    assert_eq!(health.check(service).await.unwrap().into_inner().status(), ServingStatus::Serving);
    let mut client = client(world);
    let get = api::GetTraceRequest { trace_id: id.clone(), include_spans: true };
    let found = client.get_trace(get).await.unwrap().into_inner();
    let read = found.trace.unwrap();
    assert_eq!((read.experiment_id, read.request_time_ms, read.duration_ms), (0, 1_000, Some(1_500)));
    assert_eq!((read.state(), read.request_preview.as_str()), (api::TraceState::Ok, "why?"));
    assert_eq!((read.tags["team"].as_str(), read.metadata["mlflow.trace.session"].as_str()), ("risk", "s1"));
    let assessment = &read.assessments[0];
    assert_eq!((assessment.name.as_str(), assessment.valid), ("good", true));
    let Some(Judgement::Feedback(api::Feedback { value: Some(value), .. })) = &assessment.judgement else {
        panic!("{assessment:?}")
    };
    assert!(format!("{value:?}").contains("rating"), "{value:?}");
    let [root] = found.spans.as_slice() else { panic!("{:?}", found.spans) };
    assert_eq!(
        (root.name.as_str(), root.start_time_ns, root.end_time_ns),
        ("span-1", 1_000_000_000, Some(1_010_000_000))
    );
    assert!(root.attributes.as_ref().unwrap().fields.contains_key("mlflow.spanInputs"));

    // The same spans as MLflow's clients read them, and as its page downloads them.
    let batch = call(world, "GET", &format!("{V3}/batchGet?trace_ids={id}"), Value::Null).await;
    let attributes = batch["traces"][0]["spans"][0]["attributes"].as_array().unwrap();
    assert!(attributes.contains(&json!({"key": "n", "value": {"int_value": 7}})), "{attributes:?}");
    let (status, file) =
        send(world.mlflow, "GET", &format!("/ajax-api/2.0/mlflow/get-trace-artifact?request_id={id}"), b"")
            .await
            .unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let written = file["spans"][0]["attributes"]["mlflow.spanInputs"].as_str().unwrap();
    assert_eq!((status, serde_json::from_str::<Value>(written).unwrap()), (200, inputs));

    let infos = json!({"trace_ids": [id], "experiment_ids": ["0"]});
    let infos = call(world, "POST", &format!("{V3}/batchGetInfos"), infos).await;
    assert_eq!(infos["trace_infos"][0]["trace_id"], id.as_str());
    let elsewhere = json!({"trace_ids": [id], "experiment_ids": ["5"]});
    let elsewhere = call(world, "POST", &format!("{V3}/batchGetInfos"), elsewhere).await;
    assert_eq!(elsewhere["trace_infos"], json!([]));

    // And the other way.
    let other = api::Trace {
        trace_id: "tr-by-grpc".into(),
        request_time_ms: 2_000,
        state: api::TraceState::InProgress.into(),
        tags: [("team".to_owned(), "sales".to_owned())].into(),
        ..api::Trace::default()
    };
    client.start_trace(api::StartTraceRequest { trace: Some(other) }).await.unwrap();
    let end = api::EndTraceRequest {
        trace_id: "tr-by-grpc".into(),
        end_time_ms: 2_250,
        state: api::TraceState::Error.into(),
        ..api::EndTraceRequest::default()
    };
    client.end_trace(end).await.unwrap();
    let tag = api::SetTraceTagRequest { trace_id: "tr-by-grpc".into(), key: "seen".into(), value: "yes".into() };
    client.set_trace_tag(tag).await.unwrap();
    let expected = api::Assessment {
        trace_id: "tr-by-grpc".into(),
        assessment_id: "a-1".into(),
        name: "answer".into(),
        judgement: Some(Judgement::Expectation(api::Expectation {
            value: Some(prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(42.0)) }),
        })),
        ..api::Assessment::default()
    };
    client.create_assessment(api::CreateAssessmentRequest { assessment: Some(expected) }).await.unwrap();
    let read = call(world, "GET", &format!("{V3}/tr-by-grpc"), Value::Null).await;
    let read = &read["trace"]["trace_info"];
    assert_eq!((&read["state"], &read["tags"]["seen"]), (&json!("ERROR"), &json!("yes")));
    let took: prost_types::Duration = read["execution_duration"].as_str().unwrap().parse().unwrap();
    assert_eq!((took.seconds, took.nanos), (0, 250_000_000));
    assert_eq!(read["assessments"][0]["expectation"]["value"], json!(42));
    let found = api::SearchTracesRequest {
        experiment_ids: vec![0],
        filter: "tags.team = 'risk' AND feedback.good LIKE '%rating%'".into(),
        ..api::SearchTracesRequest::default()
    };
    let found = client.search_traces(found).await.unwrap().into_inner().traces;
    assert_eq!(found.iter().map(|one| one.trace_id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    let tag = api::DeleteTraceTagRequest { trace_id: "tr-by-grpc".into(), key: "seen".into() };
    client.delete_trace_tag(tag.clone()).await.unwrap();
    assert_eq!(reason(client.delete_trace_tag(tag).await), "TAG_NOT_FOUND");
}

async fn spans_make_a_trace_in_whatever_order_they_come(world: &World) {
    let usage =
        |n: i64| ("mlflow.chat.tokenUsage", json!({"input_tokens": n, "output_tokens": 1, "total_tokens": n + 1}));
    export(world, vec![span(2, 2, 1, 1_005, &[usage(2), ("openinference.span.kind", json!("LLM"))])]).await;
    let get =
        async || call(world, "GET", &format!("{V3}/{}", named(2)), Value::Null).await["trace"]["trace_info"].clone();
    assert_eq!(get().await["state"], "IN_PROGRESS");

    // The root comes late, compressed, and a span twice.
    let said = json!({"messages": [{"role": "user", "content": "hello"}]});
    let mut root = span(2, 1, 0, 1_000, &[("mlflow.spanInputs", said), usage(3)]);
    root.status = Some(Status { code: StatusCode::Error.into(), message: "broken\0".into() });
    root.end_time_unix_nano = 1_100_000_000;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&request(vec![root.clone(), root]).encode_to_vec()).unwrap();
    let headers = [PROTOBUF, EXPERIMENT, ("Content-Encoding", "gzip")];
    let answer = send_with(world.mlflow, "POST", "/v1/traces", &headers, &gzip.finish().unwrap()).await.unwrap();
    assert_eq!(answer, (200, Vec::new()));
    let info = get().await;
    assert_eq!((&info["state"], &info["request_preview"]), (&json!("ERROR"), &json!("hello")));
    assert_eq!(info["request_time"].as_str().unwrap().parse::<prost_types::Timestamp>().unwrap().seconds, 1);
    let took: prost_types::Duration = info["execution_duration"].as_str().unwrap().parse().unwrap();
    assert_eq!(took.nanos, 100_000_000);
    let tokens: Value =
        serde_json::from_str(info["trace_metadata"]["mlflow.trace.tokenUsage"].as_str().unwrap()).unwrap();
    assert_eq!(tokens, json!({"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}));
    let whole = call(world, "GET", &format!("{V3}/get?trace_id={}", named(2)), Value::Null).await;
    let spans = whole["trace"]["spans"].as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["span-1", "span-2"], "the root first");
    assert_eq!(spans[0]["status"], json!({"code": "STATUS_CODE_ERROR", "message": "broken\u{fffd}"}));

    // A trace whose client says that it has more spans is not whole yet.
    let mut announced = trace(&named(2), 1_000);
    announced["trace"]["trace_info"]["trace_metadata"] = json!({"mlflow.trace.sizeStats": "{\"num_spans\": 3}"});
    call(world, "POST", V3, announced).await;
    let path = format!("{V3}/get?trace_id={}", named(2));
    assert_eq!(world.rest("GET", &path, Value::Null).await.0, 404);
    call(world, "GET", &format!("{path}&allow_partial=true"), Value::Null).await;
    let batch = call(world, "GET", &format!("{V3}/batchGet?trace_ids={}", named(2)), Value::Null).await;
    assert_eq!(batch["traces"], json!([]));

    // OTLP in JSON.
    let body = serde_json::to_vec(&request(vec![span(3, 1, 0, 1, &[])])).unwrap();
    let headers = [("Content-Type", "application/json"), EXPERIMENT];
    assert_eq!(send_with(world.mlflow, "POST", "/v1/traces", &headers, &body).await.unwrap(), (200, b"{}".to_vec()));
    assert_eq!(search(world, "name = 'span-1'", "timestamp ASC").await, [named(3), named(2)]);
}

async fn traces_are_found_by_what_they_are(world: &World) {
    let attributes = [("model", json!("gpt-4")), ("temperature", json!(0.7)), ("cached", json!(true))];
    export(world, vec![span(1, 1, 0, 1_000, &attributes), span(1, 2, 1, 1_001, &[("mlflow.spanType", json!("TOOL"))])])
        .await;
    export(world, vec![span(2, 3, 0, 2_000, &[("text", json!("größer als 90%"))])]).await;
    let run = call(world, "POST", "/api/2.0/mlflow/runs/create", json!({"experiment_id": "0"})).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let mut third = trace("three", 3_000);
    third["trace"]["trace_info"]["state"] = json!("ERROR");
    third["trace"]["trace_info"]["client_request_id"] = json!("req-3");
    third["trace"]["trace_info"]["tags"] = json!({"env": "Prod", "mlflow.traceName": "third"});
    third["trace"]["trace_info"]["trace_metadata"] = json!({"mlflow.sourceRun": run});
    call(world, "POST", V3, third).await;
    let link = json!({"trace_ids": [named(1)], "run_id": run});
    call(world, "POST", &format!("{V2}/link-to-run"), link).await;
    let judged = json!({"assessment": {"assessment_name": "good", "feedback": {"value": "yes"}}});
    call(world, "POST", &format!("{V3}/{}/assessments", named(2)), judged).await;

    let (one, two, three) = (named(1), named(2), "three".to_owned());
    for (filter, wanted) in [
        ("", vec![&three, &two, &one]),
        ("status = 'OK'", vec![&two, &one]),
        ("trace.status IN ('ERROR', 'IN_PROGRESS')", vec![&three]),
        ("timestamp_ms >= 2000 AND execution_time_ms < 1000", vec![&two]),
        ("end_time_ms > 4000", vec![&three]),
        ("client_request_id LIKE 'req-%'", vec![&three]),
        ("request_id != 'three'", vec![&two, &one]),
        ("name = 'third'", vec![&three]),
        ("name RLIKE '^span-[13]$'", vec![&two, &one]),
        ("tags.env ILIKE 'prod'", vec![&three]),
        ("tags.env LIKE 'prod'", vec![]),
        (&format!("run_id = '{run}'"), vec![&three, &one]),
        (&format!("metadata.mlflow.sourceRun != '{run}'"), vec![]),
        ("span.name = 'span-2'", vec![&one]),
        ("span.type = 'TOOL' AND span.status != 'ERROR'", vec![&one]),
        ("span.attributes.model = 'gpt-4'", vec![&one]),
        ("span.attributes.temperature LIKE '%0.7%'", vec![&one]),
        ("span.attributes.cached = 'true'", vec![&one]),
        ("span.attributes.`mlflow.spanType` RLIKE 'TO+L'", vec![&one]),
        ("trace.text LIKE '%als 90%%'", vec![&two]),
        ("span.content ILIKE '%GRÖSSER%'", vec![]),
        ("feedback.good = 'yes'", vec![&two]),
        ("feedback.good = '\"yes\"'", vec![&two]),
        ("expectation.good = 'yes'", vec![]),
        ("tags.x = \"' OR 1=1 --\"", vec![]),
    ] {
        let wanted: Vec<String> = wanted.into_iter().cloned().collect();
        assert_eq!(search(world, filter, "").await, wanted, "{filter}");
    }
    assert_eq!(search(world, "", "execution_time ASC").await[2], three, "the longest");
    assert_eq!(search(world, "", "tags.env").await[0], three, "what has none is last");

    let counted =
        json!({"experiment_ids": ["0"], "filter_string1": "status = 'OK'", "filter_string2": "span.type = 'TOOL'"});
    let counted = call(world, "POST", &format!("{V3}/calculate-filter-correlation"), counted).await;
    let counts = ["filter1_count", "filter2_count", "joint_count", "total_count"].map(|name| counted[name].clone());
    assert_eq!(counts, [json!(2), json!(1), json!(1), json!(3)]);
    assert!(counted["npmi"].as_f64().unwrap() > 0.0);
}

async fn pages_show_each_trace_once(world: &World) {
    let ids: Vec<String> = (0..7).map(|n| format!("t{n}")).collect();
    for (n, id) in (0..).zip(&ids) {
        // Three moments, so that equals stand on both sides of a page's end.
        call(world, "POST", V3, trace(id, 1_000 + n / 3)).await;
    }
    for order in ["", "timestamp DESC", "timestamp_ms ASC", "execution_time DESC", "tags.none ASC"] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let request = api::SearchTracesRequest {
                experiment_ids: vec![0],
                order_by: Vec::from_iter(Some(order.to_owned()).filter(|order| !order.is_empty())),
                page_size: 2,
                page_token: token,
                ..api::SearchTracesRequest::default()
            };
            let page = client(world).search_traces(request).await.unwrap().into_inner();
            seen.extend(page.traces.into_iter().map(|trace| trace.trace_id));
            // What comes in between does not shift a page by time.
            if seen.len() == 2 && order.is_empty() {
                call(world, "POST", V3, trace("t9", 9_000)).await;
                call(
                    world,
                    "POST",
                    &format!("{V3}/delete-traces"),
                    json!({"experiment_id": "0", "request_ids": ["t9"]}),
                )
                .await;
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let all = match order {
            "timestamp_ms ASC" => "t0 t1 t2 t3 t4 t5 t6",
            _ => "t6 t3 t4 t5 t0 t1 t2",
        };
        assert_eq!(seen.join(" "), all, "{order}");
    }
    let old = call(world, "GET", &format!("{V2}?experiment_ids=0&max_results=3"), Value::Null).await;
    let token = old["next_page_token"].as_str().unwrap();
    let more = call(world, "GET", &format!("{V2}?experiment_ids=0&page_token={token}"), Value::Null).await;
    let found: Vec<_> = more["traces"].as_array().unwrap().iter().map(|trace| &trace["request_id"]).collect();
    assert_eq!(found, ["t5", "t0", "t1", "t2"]);
}

async fn clients_of_the_second_version_begin_end_and_keep_a_file(world: &World) {
    let start = json!({"experiment_id": "0", "timestamp_ms": 1_000,
        "request_metadata": [{"key": "m", "value": "1"}], "tags": [{"key": "t", "value": "1"}]});
    let started = call(world, "POST", V2, start).await["trace_info"].clone();
    assert_eq!((&started["status"], &started["execution_time_ms"]), (&json!("IN_PROGRESS"), &json!(0)));
    let id = started["request_id"].as_str().unwrap();
    let end = json!({"timestamp_ms": 3_000, "status": "OK", "request_metadata": [{"key": "m", "value": "2"}],
        "tags": [{"key": "u", "value": "3"}]});
    call(world, "PATCH", &format!("{V2}/{id}"), end).await;
    let info = call(world, "GET", &format!("{V2}/{id}/info"), Value::Null).await["trace_info"].clone();
    assert_eq!((&info["status"], &info["execution_time_ms"]), (&json!("OK"), &json!(2_000)));
    assert_eq!(info["request_metadata"], json!([{"key": "m", "value": "2"}]));
    let tags = info["tags"].as_array().unwrap();
    let tag =
        |key: &str| tags.iter().find(|tag| tag["key"] == key).map(|tag| tag["value"].as_str().unwrap().to_owned());
    assert_eq!((tag("t").as_deref(), tag("u").as_deref()), (Some("1"), Some("3")));
    let place = tag("mlflow.artifactLocation").unwrap();
    let path = place.strip_prefix("mlflow-artifacts:/").unwrap();
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}/traces.json");
    assert_eq!(send(world.mlflow, "PUT", &path, b"{\"spans\": []}").await.unwrap().0, 200);
    let read = format!("/ajax-api/2.0/mlflow/get-trace-artifact?request_id={id}");
    assert_eq!(send(world.mlflow, "GET", &read, b"").await.unwrap(), (200, b"{\"spans\": []}".to_vec()));
}

async fn assessments_override_each_other(world: &World) {
    call(world, "POST", V3, trace("t", 1_000)).await;
    let path = format!("{V3}/t/assessments");
    let add = async |fields: Value| {
        let mut assessment = json!({"assessment_name": "good", "source": {"source_type": "LLM_JUDGE"}});
        assessment.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let added = call(world, "POST", &path, json!({"assessment": assessment})).await;
        added["assessment"]["assessment_id"].as_str().unwrap().to_owned()
    };
    let get = async |id: &str| call(world, "GET", &format!("{path}/{id}"), Value::Null).await["assessment"].clone();
    let first =
        add(json!({"feedback": {"value": 4, "error": {"error_code": "LATE"}}, "metadata": {"a": "1", "b": "1"}})).await;
    let second = add(json!({"feedback": {"value": 3}, "overrides": first})).await;
    assert_eq!((&get(&first).await["valid"], &get(&second).await["valid"]), (&json!(false), &json!(true)));
    let change = json!({"assessment": {"feedback": {"value": 5}, "rationale": "better", "metadata": {"b": "2"},
        "assessment_name": "not named by the mask"}, "update_mask": "feedback,rationale,metadata"});
    let changed = call(world, "PATCH", &format!("{path}/{first}"), change).await["assessment"].clone();
    assert_eq!((&changed["feedback"]["value"], &changed["assessment_name"]), (&json!(5), &json!("good")));
    assert_eq!(changed["metadata"], json!({"a": "1", "b": "2"}));
    assert_eq!(get(&first).await["valid"], false);
    call(world, "DELETE", &format!("{path}/{second}"), Value::Null).await;
    call(world, "DELETE", &format!("{path}/{second}"), Value::Null).await;
    assert_eq!(get(&first).await["valid"], true);
    assert_eq!(world.rest("GET", &format!("{path}/{second}"), Value::Null).await.0, 404);
    let listed =
        add(json!({"expectation": {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": "[1, 2]"}}}))
            .await;
    assert_eq!(get(&listed).await["expectation"]["serialized_value"]["value"], "[1,2]");
    let mixed = json!({"assessment": {"feedback": {"value": 1}}, "update_mask": "feedback"});
    let (status, told) = world.rest("PATCH", &format!("{path}/{listed}"), mixed).await;
    assert!(status == 400 && told["message"].as_str().unwrap().contains("on an Expectation"), "{told}");
    let lost = json!({"assessment": {"assessment_name": "x", "feedback": {"value": 1}, "overrides": "none"}});
    assert_eq!(world.rest("POST", &path, lost).await.0, 404);
    assert_eq!(get(&first).await["valid"], true, "nothing of it was written");
}

async fn deleted_traces_leave_nothing(world: &World) {
    for (n, id) in (1..).zip(["a", "b", "c", "d"]) {
        call(world, "POST", V3, trace(id, n * 1_000)).await;
    }
    export(world, vec![span(1, 1, 0, 10_000, &[])]).await;
    let delete = async |body: Value| {
        let mut fields = json!({"experiment_id": "0"});
        fields.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        call(world, "POST", &format!("{V3}/delete-traces"), fields).await["traces_deleted"].clone()
    };
    assert_eq!(delete(json!({"request_ids": ["c", "none"]})).await, 1);
    assert_eq!(delete(json!({"max_timestamp_millis": 4_000, "max_traces": 1})).await, 1);
    assert_eq!(search(world, "", "timestamp ASC").await, ["b".to_owned(), "d".to_owned(), named(1)]);
    let request = api::DeleteTracesRequest { max_time_ms: Some(20_000), ..api::DeleteTracesRequest::default() };
    assert_eq!(client(world).delete_traces(request).await.unwrap().into_inner().deleted, 3);
    let batch = call(world, "GET", &format!("{V3}/batchGet?trace_ids={}", named(1)), Value::Null).await;
    assert_eq!(batch["traces"], json!([]));
    // Its id can be taken again, and brings nothing back.
    call(world, "POST", V3, trace(&named(1), 1_000)).await;
    let again = call(world, "GET", &format!("{V3}/get?trace_id={}", named(1)), Value::Null).await;
    assert_eq!(again["trace"]["spans"], json!([]));
}
