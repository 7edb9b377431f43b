use std::{
    fs,
    time::{Duration, Instant},
};

use futures::FutureExt;
use predict::Config;
use tonic::Code;
use verdict_api::{
    predict::{ChatMessage, FinishReason, GenerateFinish, GenerateRequest, GeneratedToken, generate_response::Event},
    registry::Task,
};
use verdict_chassis::status;
use verdict_testkit::models;

use crate::world::{Predict, Registry, config, golden, told};

fn request(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: "gemma-3-270m@champion".to_owned(),
        prompt: prompt.to_owned(),
        max_tokens,
        ..GenerateRequest::default()
    }
}

async fn generate(predict: &Predict, request: GenerateRequest) -> (Vec<GeneratedToken>, GenerateFinish) {
    let mut messages = predict.client().generate(request).await.unwrap().into_inner();
    let mut tokens = Vec::new();
    loop {
        match messages.message().await.unwrap().expect("a finish at the end").event.unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finish(finish) => {
                assert!(messages.message().await.unwrap().is_none(), "nothing after the finish");
                return (tokens, finish);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_streamed_as_the_reference_has_it_and_the_queue_can_say_no() {
    let registry = Registry::start().await;
    registry.publish_text("gemma-3-270m", Task::TextGeneration).await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &registry.url(), &["gemma-3-270m@champion"]);
    let predict = Predict::start(Config { generation_running: 1, generation_queue: 1, ..config }).await;
    predict.wait_ready().await;

    let golden = golden("gemma3_270m.json");
    let case = &golden["generation"][0];
    let ids: Vec<_> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let prompt = case["prompt"].as_str().unwrap();
    let (tokens, finish) = generate(&predict, request(prompt, 8)).await;
    assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), ids[..8]);
    assert_eq!((finish.reason(), finish.completion_tokens), (FinishReason::Length, 8));
    assert_eq!(finish.prompt_tokens as usize, case["prompt_ids"].as_array().unwrap().len());
    assert!(finish.served_by.unwrap().compute_ms > 0.0);
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();

    let stop = GenerateRequest { stop: vec!["country".to_owned()], ..request(prompt, 32) };
    let (tokens, finish) = generate(&predict, stop).await;
    assert_eq!(finish.reason(), FinishReason::Stop);
    let stopped: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.starts_with(&stopped) && !stopped.contains("country"), "{stopped:?} of {text:?}");

    let seeded = GenerateRequest { temperature: Some(0.8), seed: Some(7), ..request(prompt, 6) };
    assert_eq!(generate(&predict, seeded.clone()).await.0, generate(&predict, seeded).await.0);

    let refused = async |request: GenerateRequest| predict.client().generate(request).await.unwrap_err();
    assert_eq!(told(&refused(request("", 1)).await).1, ["prompt"]);
    assert_eq!(told(&refused(request("x", 1_000_000)).await).1, ["max_tokens"]);
    let cold = GenerateRequest { temperature: Some(-1.0), ..request("x", 1) };
    assert_eq!(told(&refused(cold).await).1, ["temperature"]);

    // One runs, one waits, the third is refused; when the first leaves, the second gets its turn.
    let mut running = predict.client().generate(request(prompt, 2000)).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    let mut waiting = predict.client().generate(request(prompt, 1)).await.unwrap().into_inner();
    let full = refused(request(prompt, 1)).await;
    assert_eq!((full.code(), told(&full).0.as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(status::retry_after(&full).is_some());
    let left = Instant::now();
    drop(running);
    waiting.message().await.unwrap().unwrap();
    assert!(left.elapsed() < Duration::from_secs(10), "the abandoned generation went on for {:?}", left.elapsed());
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_goes_on_while_another_version_takes_over() {
    let registry = Registry::start().await;
    registry.publish_text("gemma-3-270m", Task::TextGeneration).await;
    let (predict, _dir) = Predict::warm(&registry, &["gemma-3-270m@champion"]).await;
    let mut running = predict.client().generate(request("Once upon a time", 4000)).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    // The same weights beside another file: another version.
    let second = tempfile::tempdir().unwrap();
    let weights = "gemma-3-270m-q4_k_m.gguf";
    fs::copy(models::dir("gemma-3-270m").join(weights), second.path().join(weights)).unwrap();
    fs::write(second.path().join("README.md"), "The second version.").unwrap();
    registry.publish("gemma-3-270m", Task::TextGeneration, second.path().to_owned(), Some("champion")).await;
    predict.wait("version 2 serves", async || predict.served().await[0].version == 2).await;
    assert_eq!(generate(&predict, request("x", 1)).await.1.served_by.unwrap().version, 2);

    // What was on its way is read first; then come tokens that are made now.
    while let Some(message) = running.message().now_or_never() {
        assert!(matches!(message.unwrap().unwrap().event, Some(Event::Token(_))), "it ended too soon to tell");
    }
    for _ in 0..3 {
        let message = running.message().await.unwrap().unwrap();
        assert!(matches!(message.event, Some(Event::Token(_))));
    }
    drop(running);
    predict.stop().await;
}

/// A schema, prefixes that come again, many at once, and what is wrong with a request.
#[tokio::test(flavor = "multi_thread")]
async fn texts_run_together_share_beginnings_and_follow_schemas() {
    let registry = Registry::start().await;
    registry.publish_text("gemma-3-270m", Task::TextGeneration).await;
    let (predict, _dir) = Predict::warm(&registry, &["gemma-3-270m@champion"]).await;

    // Several at once say what each says alone.
    let prompts = ["Once upon a time", "The capital of France is", "One, two, three,", "Water boils at"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(generate(&predict, request(prompt, 24)).await.0);
    }
    let together = prompts.map(|prompt| generate(&predict, request(prompt, 24)));
    for ((tokens, finish), alone) in futures::future::join_all(together).await.into_iter().zip(alone) {
        assert_eq!(tokens, alone);
        assert!(finish.served_by.unwrap().batch_size >= 1);
    }

    let long = "The bank asked for the year, the amount and the purpose of each loan. ".repeat(8);
    let first = generate(&predict, request(&long, 4)).await;
    let again = generate(&predict, request(&long, 4)).await;
    assert_eq!(first.0, again.0);
    assert_eq!(first.1.cached_prompt_tokens, 0);
    assert!(again.1.cached_prompt_tokens >= 96 && again.1.cached_prompt_tokens < again.1.prompt_tokens);

    let json_schema = r#"{"type": "object", "additionalProperties": false, "required": ["city", "capital"],
        "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}}}"#
        .to_owned();
    let with_schema = GenerateRequest { json_schema, top_logprobs: 3, ..request("Paris as JSON: ", 60) };
    let (tokens, finish) = generate(&predict, with_schema.clone()).await;
    assert_eq!(finish.reason(), FinishReason::Stop);
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value["city"].is_string() && value["capital"].is_boolean() && value.as_object().unwrap().len() == 2);
    for token in &tokens {
        let best: Vec<f32> = token.top.iter().map(|other| other.logprob).collect();
        assert!(best.len() == 3 && best.is_sorted_by(|a, b| a >= b) && token.logprob <= best[0]);
    }

    let refused = async |request: GenerateRequest| predict.client().generate(request).await.unwrap_err();
    let schema = GenerateRequest { json_schema: r#"{"type": "strange"}"#.to_owned(), ..with_schema };
    let status = refused(schema).await;
    assert_eq!((status.code(), told(&status).1), (Code::InvalidArgument, vec!["json_schema".to_owned()]));
    let messages = vec![ChatMessage { role: "user".to_owned(), content: "hi".to_owned() }];
    let status = refused(GenerateRequest { messages, ..request("", 4) }).await;
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::FailedPrecondition, "NO_CHAT_TEMPLATE"));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_generation_and_one_in_the_past_begins_none() {
    let registry = Registry::start().await;
    registry.publish_text("gemma-3-270m", Task::TextGeneration).await;
    let (predict, _dir) = Predict::warm(&registry, &["gemma-3-270m@champion"]).await;
    let mut slow = tonic::Request::new(request("Once upon a time", 8000));
    slow.set_timeout(Duration::from_secs(2));
    let began = Instant::now();
    let mut messages = predict.client().generate(slow).await.unwrap().into_inner();
    let status = loop {
        match messages.message().await {
            Ok(message) => assert!(message.is_some(), "it ends with an error"),
            Err(status) => break status,
        }
    };
    // Whoever notices first says so: the client, which cancels, or the engine.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let mut late = tonic::Request::new(request("Once upon a time", 10));
    late.set_timeout(Duration::from_nanos(1));
    assert!(predict.client().generate(late).await.is_err());
    // The engine is free again.
    assert_eq!(generate(&predict, request("x", 1)).await.1.completion_tokens, 1);
    predict.stop().await;
}

/// A conversation with a model that has a chat template.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_through_the_model_s_template() {
    let registry = Registry::start().await;
    registry.publish_text("smollm2-135m", Task::TextGeneration).await;
    let (predict, _dir) = Predict::warm(&registry, &["smollm2-135m@champion"]).await;
    let message = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
    let chat = |messages: Vec<ChatMessage>| GenerateRequest {
        model: "smollm2-135m@champion".to_owned(),
        messages,
        max_tokens: 60,
        ..GenerateRequest::default()
    };
    let question = message("user", "Say hello.");
    let (tokens, finish) = generate(&predict, chat(vec![question.clone()])).await;
    let answer: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(answer.contains("Hello") && !answer.contains("<|im_end|>"), "{answer:?}");
    assert_eq!(finish.reason(), FinishReason::Stop);
    let next = vec![question, message("assistant", &answer), message("user", "Say it again.")];
    let (_, finish) = generate(&predict, chat(next)).await;
    assert!(finish.cached_prompt_tokens >= 32, "the next turn finds the one before: {finish:?}");
    let status = predict.client().generate(chat(vec![message("tool", "x")])).await.unwrap_err();
    assert_eq!(told(&status).1, ["messages[0].role"]);
    predict.stop().await;
}
