//! Many texts continued together: what comes out, what is shared, and what is refused.

use std::{fs, sync::LazyLock};

use verdict_inference::{
    ItemError,
    generation::{
        Engine, EngineOptions, Event, Finish, Generator, Reason, Refused, Request, Sampling, SequenceId, Step,
    },
};

use crate::support::golden;

static TINY: LazyLock<Generator> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    fs::write(&file, golden("tiny_qwen3.gguf.gz")).unwrap();
    Generator::load(&file).unwrap()
});

fn request(prompt: &[u32], sampling: Sampling) -> Request {
    Request { prompt: prompt.to_vec(), sampling, constraint: None }
}

fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|index| (index * 37 + seed * 101) % 256).collect()
}

fn sampled(seed: u64, tokens: usize) -> Sampling {
    Sampling { temperature: 1.0, top_p: 0.95, seed, ..Sampling::greedy(tokens) }
}

fn admitted(engine: &mut Engine, request: Request) -> SequenceId {
    engine.admit(request).unwrap_or_else(|refused| match refused {
        Refused::Full(_) => panic!("the engine is full"),
        Refused::Invalid(problem) => panic!("{problem}"),
    })
}

/// Runs until nothing is left; texts in the order of `ids`.
fn run(engine: &mut Engine, ids: &[SequenceId]) -> Vec<(Vec<Step>, Finish)> {
    let mut texts: Vec<(Vec<Step>, Option<Finish>)> = ids.iter().map(|_| (Vec::new(), None)).collect();
    while !engine.is_idle() {
        for event in engine.step() {
            let Event::Step(id, step, finish) = event else { panic!("{event:?}") };
            if let Some(index) = ids.iter().position(|other| *other == id) {
                texts[index].0.push(step);
                texts[index].1 = finish;
            }
        }
    }
    texts.into_iter().map(|(steps, finish)| (steps, finish.unwrap())).collect()
}

#[test]
fn a_text_is_the_same_beside_others_and_however_its_prompt_is_read() {
    let requests: Vec<(Vec<u32>, Sampling)> =
        (0..7).map(|seed| (prompt(seed, 5 + 41 * seed as usize), sampled(u64::from(seed), 40))).collect();
    let alone: Vec<Vec<Step>> =
        requests.iter().map(|(prompt, sampling)| TINY.start(prompt, sampling.clone()).unwrap().collect()).collect();
    for prompt_chunk in [1, 37, 128] {
        let options = EngineOptions { prompt_chunk, max_sequences: 4, ..EngineOptions::default() };
        let mut engine = Engine::new(TINY.clone(), options);
        let mut waiting = requests.clone();
        let mut ids: Vec<SequenceId> = Vec::new();
        let mut texts: Vec<Vec<Step>> = vec![Vec::new(); requests.len()];
        // Texts come and go between steps.
        while !engine.is_idle() || !waiting.is_empty() {
            while engine.running() < 4 && !waiting.is_empty() {
                let (prompt, sampling) = waiting.remove(0);
                ids.push(admitted(&mut engine, request(&prompt, sampling)));
            }
            for event in engine.step() {
                let Event::Step(id, step, _) = event else { panic!("{event:?}") };
                texts[ids.iter().position(|other| *other == id).unwrap()].push(step);
            }
        }
        assert_eq!(texts, alone, "parts of {prompt_chunk}");
    }
}

#[test]
fn a_shared_beginning_is_computed_once_and_changes_nothing() {
    let shared = prompt(1, 100);
    let other: Vec<u32> = [&shared[..80], &prompt(9, 50)].concat();
    let mut engine = Engine::new(TINY.clone(), EngineOptions::default());
    let continue_with = |engine: &mut Engine, prompt: &[u32]| {
        let id = admitted(engine, request(prompt, sampled(3, 30)));
        run(engine, &[id]).pop().unwrap()
    };
    let fresh = |prompt: &[u32]| TINY.start(prompt, sampled(3, 30)).unwrap().collect::<Vec<_>>();
    let (steps, finish) = continue_with(&mut engine, &shared);
    assert_eq!((steps, finish.cached_tokens), (fresh(&shared), 0));
    let (steps, finish) = continue_with(&mut engine, &shared);
    assert_eq!((&steps, finish.cached_tokens), (&fresh(&shared), 96));
    // What was generated is found again as well: the next turn of a conversation.
    let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
    let next = [&shared[..], &ids[..29], &prompt(4, 9)].concat();
    let (steps, finish) = continue_with(&mut engine, &next);
    assert_eq!((steps, finish.cached_tokens), (fresh(&next), 128));
    let (steps, finish) = continue_with(&mut engine, &other);
    assert_eq!((steps, finish.cached_tokens), (fresh(&other), 64));
    let options = EngineOptions { reuses_prefixes: false, ..EngineOptions::default() };
    let mut engine = Engine::new(TINY.clone(), options);
    continue_with(&mut engine, &shared);
    assert_eq!(continue_with(&mut engine, &shared).1.cached_tokens, 0);
}

#[test]
fn room_is_promised_before_a_text_begins_and_freed_when_it_ends() {
    let options = EngineOptions { max_sequences: 3, cache_tokens: 128, ..EngineOptions::default() };
    let mut engine = Engine::new(TINY.clone(), options);
    assert_eq!(engine.max_positions(), 128);
    let first = admitted(&mut engine, request(&prompt(1, 30), Sampling::greedy(34)));
    let full = engine.admit(request(&prompt(2, 30), Sampling::greedy(66))).err().unwrap();
    let Refused::Full(waiting) = full else { panic!("there is room for 64 positions") };
    // What fits goes in beside it.
    let second = admitted(&mut engine, request(&prompt(3, 10), Sampling::greedy(50)));
    engine.step();
    assert_eq!(engine.cancel(first).unwrap().completion_tokens, 1);
    assert!(engine.cancel(first).is_none());
    assert!(matches!(engine.admit(*waiting), Err(Refused::Full(_))), "96 positions do not fit beside 64");
    assert!(engine.cancel(second).is_some() && engine.is_idle());
    let third = admitted(&mut engine, request(&prompt(2, 30), Sampling::greedy(66)));
    let (steps, finish) = run(&mut engine, &[third]).pop().unwrap();
    assert!(steps.len() == finish.completion_tokens && finish.prompt_tokens == 30);
    let too_long = engine.admit(request(&prompt(2, 100), Sampling::greedy(29))).err().unwrap();
    assert!(matches!(too_long, Refused::Invalid(ItemError::TooLong { tokens: 129, max: 128 })));
    for _ in 0..3 {
        admitted(&mut engine, request(&[1], Sampling::greedy(1)));
    }
    assert!(matches!(engine.admit(request(&[1], Sampling::greedy(1))), Err(Refused::Full(_))), "three texts are most");
}

#[test]
fn a_long_prompt_holds_the_others_up_for_one_part_of_it_at_a_time() {
    let options = EngineOptions { prompt_chunk: 16, ..EngineOptions::default() };
    let mut engine = Engine::new(TINY.clone(), options);
    let short = admitted(&mut engine, request(&prompt(1, 4), sampled(1, 60)));
    engine.step();
    let long = admitted(&mut engine, request(&prompt(2, 160), sampled(2, 4)));
    for _ in 0..9 {
        let events = engine.step();
        assert!(matches!(events[..], [Event::Step(id, _, None)] if id == short), "{events:?}");
    }
    let events = engine.step();
    let of_long = events.iter().filter(|event| matches!(event, Event::Step(id, ..) if *id == long)).count();
    assert_eq!((events.len(), of_long), (2, 1));
}

#[test]
fn a_schema_holds_whatever_the_model_would_rather_say() {
    let schema = r#"{"type": "object", "additionalProperties": false, "required": ["ok", "level", "tags"], "properties": {
        "ok": {"type": "boolean"}, "level": {"enum": ["low", "high"]},
        "tags": {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 17}, "maxItems": 3}}}"#;
    let mut stopped = 0;
    for seed in 0..20 {
        let constraint = Some(TINY.constrain(schema).unwrap());
        let request = Request { prompt: prompt(seed, 6), sampling: sampled(u64::from(seed), 120), constraint };
        let mut session = TINY.begin(request).unwrap();
        let text: String = session.by_ref().map(|step| step.text).collect();
        if session.finish().unwrap().reason == Reason::Stop {
            stopped += 1;
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let fields = value.as_object().unwrap();
            assert_eq!(fields.len(), 3);
            assert!(fields["ok"].is_boolean() && ["low", "high"].contains(&fields["level"].as_str().unwrap()));
            let tags = fields["tags"].as_array().unwrap();
            assert!(tags.len() <= 3 && tags.iter().all(|tag| (3..=17).contains(&tag.as_i64().unwrap())));
        }
    }
    assert!(stopped >= 18, "{stopped} of 20 ended");
}

#[test]
fn a_schema_that_cannot_be_enforced_is_refused() {
    let problem = |schema: &str| TINY.constrain(schema).err().map(|problem| problem.to_string()).unwrap_or_default();
    assert!(problem("{").starts_with("the schema is not JSON: "));
    assert_eq!(problem("[]"), "the schema is not a JSON object");
    assert!(problem(r#"{"type": "strange"}"#).starts_with("the schema cannot be enforced: "));
    let unknown = problem(r#"{"type": "object", "unevaluatedProperties": false}"#);
    assert!(unknown.starts_with("the schema cannot be enforced: "), "{unknown}");
    let wide = format!(r#"{{"enum": ["{}"]}}"#, "x".repeat(70_000));
    assert!(problem(&wide).contains("at most 65536 are taken"));
    let remote = problem(r#"{"$ref": "http://127.0.0.1:9/schema.json"}"#);
    assert!(remote.starts_with("the schema cannot be enforced: "), "{remote}");
    // A stop string could cut the JSON.
    let sampling = Sampling { stop: vec![",".to_owned()], ..Sampling::greedy(5) };
    let constraint = Some(TINY.constrain(r#"{"type": "integer"}"#).unwrap());
    assert!(TINY.begin(Request { prompt: vec![1], sampling, constraint }).is_err());
}

/// Needs the demo's generator.
mod live {
    use serde::Deserialize;
    use verdict_testkit::models;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Loan {
        name: String,
        amount: f64,
        purpose: Purpose,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Purpose {
        Car,
        House,
        Other,
    }

    static GEMMA: LazyLock<Generator> =
        LazyLock::new(|| Generator::load(&models::dir("gemma-3-270m").join("gemma-3-270m-q4_k_m.gguf")).unwrap());

    #[test]
    fn texts_beside_each_other_and_on_shared_beginnings_are_those_of_each_alone() {
        // Longer than the window of the local layers.
        let shared = "The bank asked for the year, the amount and the purpose of each loan. ".repeat(40);
        let prompts: Vec<Vec<u32>> = ["It", "The amount was", "Nobody knew", "A house"]
            .map(|end| GEMMA.encode(&format!("{shared}{end}")))
            .into();
        assert!(prompts[0].len() > 512 + 32, "{}", prompts[0].len());
        let alone: Vec<Vec<Step>> =
            prompts.iter().map(|prompt| GEMMA.start(prompt, Sampling::greedy(12)).unwrap().collect()).collect();
        let mut engine = Engine::new(GEMMA.clone(), EngineOptions { prompt_chunk: 200, ..EngineOptions::default() });
        for round in 0..2 {
            let ids: Vec<SequenceId> =
                prompts.iter().map(|prompt| admitted(&mut engine, request(prompt, Sampling::greedy(12)))).collect();
            for ((steps, finish), alone) in run(&mut engine, &ids).iter().zip(&alone) {
                assert_eq!(steps, alone);
                assert!(round == 0 || finish.cached_tokens > 512, "{finish:?}");
            }
        }
    }

    #[test]
    fn json_of_a_schema_parses_into_its_type() {
        let schema = r#"{"type": "object", "additionalProperties": false, "required": ["name", "amount", "purpose"],
            "properties": {"name": {"type": "string", "maxLength": 30}, "amount": {"type": "number", "minimum": 0},
            "purpose": {"enum": ["car", "house", "other"]}}}"#;
        let prompt = GEMMA.encode("Ann borrows 12000 euros to buy a car. As JSON: ");
        for seed in 0..4 {
            let sampling = Sampling { temperature: if seed == 0 { 0.0 } else { 1.0 }, ..sampled(seed, 80) };
            let constraint = Some(GEMMA.constrain(schema).unwrap());
            let mut session = GEMMA.begin(Request { prompt: prompt.clone(), sampling, constraint }).unwrap();
            let text: String = session.by_ref().map(|step| step.text).collect();
            if session.finish().unwrap().reason == Reason::Stop {
                let Loan { name, amount, purpose } = serde_json::from_str(&text).unwrap();
                assert!(name.chars().count() <= 30 && amount >= 0.0);
                assert!(matches!(purpose, Purpose::Car | Purpose::House | Purpose::Other));
            } else {
                assert!(seed > 0, "greedily it ends: {text}");
            }
        }
    }
}
