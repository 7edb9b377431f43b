//! What traces may hold, and what is refused.

use super::*;

on_both!(what_does_not_fit_is_refused_by_name, spans_sent_again_count_once);

async fn what_does_not_fit_is_refused_by_name(world: &World) {
    call(world, "POST", V3, trace("t", 1_000)).await;
    let with = |field: &str, value: Value| {
        let mut body = trace("new", 1_000);
        body["trace"]["trace_info"][field] = value;
        body
    };
    let nowhere = json!({"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "99"}});
    let judged = |fields: Value| json!({"assessment": fields});
    let ids: Vec<String> = (0..101).map(|n| format!("t{n}")).collect();
    let many: serde_json::Map<String, Value> = (0..1_001).map(|n| (format!("k{n}"), json!("v"))).collect();
    for (method, path, body, status, wanted) in [
        ("POST", V3.to_owned(), with("trace_id", json!("x".repeat(51))), 400, "'trace_id' exceeds"),
        ("POST", V3.to_owned(), with("trace_id", json!("a\0b")), 400, "NUL"),
        ("POST", V3.to_owned(), with("trace_location", nowhere), 404, "No Experiment with id=99"),
        ("POST", V3.to_owned(), with("request_time", json!("yesterday")), 400, "'request_time'"),
        ("POST", V3.to_owned(), with("execution_duration", json!("long")), 400, "'execution_duration'"),
        ("POST", V3.to_owned(), with("state", json!("FINE")), 400, "'state'"),
        ("POST", V3.to_owned(), with("tags", json!({"k": 5})), 400, "'k'"),
        ("POST", V3.to_owned(), with("tags", json!({"k": "a\0b"})), 400, "NUL"),
        ("PATCH", format!("{V3}/t/tags"), json!({"key": "a/../b", "value": "v"}), 400, "would resolve to 'b'"),
        ("POST", V3.to_owned(), with("tags", Value::Object(many)), 400, "at most 1000 items"),
        ("POST", V3.to_owned(), json!({}), 400, "'experiment_id'"),
        ("POST", V3.to_owned(), json!({"trace": {}}), 400, "'trace.trace_info'"),
        ("GET", format!("{V3}/none"), Value::Null, 404, "Trace with ID 'none' not found"),
        ("PATCH", format!("{V2}/none"), json!({"status": "OK"}), 404, "Trace with ID 'none' not found"),
        ("PATCH", format!("{V3}/none/tags"), json!({"key": "k", "value": "v"}), 404, "'none' not found"),
        ("PATCH", format!("{V3}/t/tags"), json!({"key": "k".repeat(251), "value": "v"}), 400, "'key' exceeds"),
        ("DELETE", format!("{V3}/t/tags"), json!({"key": "k"}), 404, "No trace tag with key 'k'"),
        ("GET", format!("{V3}/batchGet?trace_ids={}", ids.join("&trace_ids=")), Value::Null, 400, "at most 100"),
        ("POST", format!("{V2}/link-to-run"), json!({"trace_ids": ["t"], "run_id": "none"}), 404, "Run with id=none"),
        ("POST", format!("{V3}/search"), json!({"filter": "status = 'OK'"}), 400, "'locations'"),
        ("GET", format!("{V2}?experiment_ids=0&filter=nothing%3D1"), Value::Null, 400, "Invalid attribute key"),
        ("GET", format!("{V2}?experiment_ids=0&max_results=501"), Value::Null, 400, "at most 500"),
        ("GET", format!("{V2}?experiment_ids=0&page_token=zz"), Value::Null, 400, "Invalid page token"),
        ("POST", format!("{V3}/delete-traces"), json!({"experiment_id": "0"}), 400, "must be specified"),
        (
            "POST",
            format!("{V3}/t/assessments"),
            judged(json!({"assessment_name": "x"})),
            400,
            "feedback or expectation",
        ),
        (
            "POST",
            format!("{V3}/t/assessments"),
            judged(json!({"assessment_name": "x", "feedback": {"value": "x".repeat(65_536)}})),
            400,
            "at most 65535 bytes",
        ),
        (
            "POST",
            format!("{V3}/t/assessments"),
            judged(json!({"assessment_name": "x", "feedback": {"value": 1}, "source": {"source_type": "GOD"}})),
            400,
            "'source.source_type'",
        ),
        (
            "POST",
            format!("{V3}/none/assessments"),
            judged(json!({"assessment_name": "x", "feedback": {"value": 1}})),
            404,
            "'none'",
        ),
    ] {
        let (found, told) = world.rest(method, &path, body).await;
        let message = told["message"].as_str().unwrap_or_default();
        assert!(
            found == status && message.contains(wanted),
            "{method} {path:.80}: {found} {message:.200}, not {wanted}"
        );
    }
    for (headers, body, wanted) in [
        (vec![PROTOBUF], request(vec![span(1, 1, 0, 1, &[])]).encode_to_vec(), "x-mlflow-experiment-id"),
        (vec![EXPERIMENT, ("Content-Type", "text/plain")], Vec::new(), "Invalid Content-Type: text/plain"),
        (vec![EXPERIMENT, PROTOBUF], Vec::new(), "no spans found"),
        (vec![EXPERIMENT, PROTOBUF], b"not protobuf".to_vec(), "Invalid OpenTelemetry format"),
        (
            vec![("x-mlflow-experiment-id", "99"), PROTOBUF],
            request(vec![span(1, 1, 0, 1, &[])]).encode_to_vec(),
            "id=99",
        ),
        (vec![EXPERIMENT, PROTOBUF], request(vec![span(1, 0, 0, 1, &[])]).encode_to_vec(), "'span_id'"),
    ] {
        let (status, answer) = send_with(world.mlflow, "POST", "/v1/traces", &headers, &body).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!((400..500).contains(&status) && answer.contains(wanted), "{status} {answer}, not {wanted}");
    }
    // What unpacks to more than a request may have is refused, however small it comes.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![0; 40 << 20]).unwrap();
    let headers = [PROTOBUF, EXPERIMENT, ("Content-Encoding", "gzip")];
    let refused = send_with(world.mlflow, "POST", "/v1/traces", &headers, &bomb.finish().unwrap()).await.unwrap();
    assert_eq!(refused.0, 413, "{}", String::from_utf8_lossy(&refused.1));
    assert_eq!(search(world, "", "").await, ["t"], "nothing of it was written");

    let mut client = client(world);
    let search = |filter: &str| api::SearchTracesRequest {
        experiment_ids: vec![0],
        filter: filter.to_owned(),
        ..api::SearchTracesRequest::default()
    };
    let refused = client.search_traces(search("nothing = 'x'")).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("'nothing'"), "{refused:?}");
    assert_eq!(reason(client.start_trace(api::StartTraceRequest { trace: None }).await), "INVALID_PARAMETER_VALUE");
    let none = api::GetTraceRequest { trace_id: "none".into(), include_spans: true };
    assert_eq!(reason(client.get_trace(none).await), "TRACE_NOT_FOUND");
    let none = api::GetAssessmentRequest { trace_id: "t".into(), assessment_id: "none".into() };
    assert_eq!(reason(client.get_assessment(none).await), "ASSESSMENT_NOT_FOUND");
}

async fn spans_sent_again_count_once(world: &World) {
    let usage = |n: i64| json!({"input_tokens": n, "output_tokens": 1, "total_tokens": n + 1});
    let tokens = async || {
        let read = call(world, "GET", &format!("{V3}/{}", named(4)), Value::Null).await;
        let told = read["trace"]["trace_info"]["trace_metadata"]["mlflow.trace.tokenUsage"].clone();
        serde_json::from_str::<Value>(told.as_str().unwrap()).unwrap()
    };
    // Four times as much as this is more than a trace may have.
    let long = "x".repeat(20 << 20);
    let one = span(4, 1, 0, 1_000, &[("mlflow.chat.tokenUsage", usage(7)), ("long", json!(long))]);
    let other = span(4, 2, 1, 1_000, &[("mlflow.chat.tokenUsage", usage(20))]);
    export(world, vec![one.clone(), other]).await;
    for _ in 0..4 {
        export(world, vec![one.clone()]).await;
        assert_eq!(tokens().await, json!({"input_tokens": 27, "output_tokens": 2, "total_tokens": 29}));
    }
    // A span that was told wrong counts for what it says now.
    export(world, vec![span(4, 1, 0, 1_000, &[("mlflow.chat.tokenUsage", usage(1))])]).await;
    assert_eq!(tokens().await, json!({"input_tokens": 21, "output_tokens": 2, "total_tokens": 23}));
    export(world, vec![span(4, 1, 0, 1_000, &[])]).await;
    assert_eq!(tokens().await, usage(20));
}
