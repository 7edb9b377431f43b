//! What a model is and what it has done, in the protocol's messages.

use std::{collections::HashMap, time::Duration};

use verdict_api::inference::{
    DataType, InferBatchStatistics, InferStatistics, ModelConfig, ModelInput, ModelMetadataResponse, ModelOutput,
    ModelStatistics, ModelTransactionPolicy, StatisticDuration, model_metadata_response::TensorMetadata,
    repository_index_response::ModelIndex,
};

use crate::{
    catalog::{Standing, State},
    engine::{
        statistics::{Counts, Span},
        tensor::{Datatype, Spec},
    },
    model::Loaded,
    reference::Selector,
};

/// Describes a model by the name it was asked for.
pub fn metadata(model: &Loaded, name: String, versions: Vec<i64>) -> ModelMetadataResponse {
    let tensor = |spec: &Spec| TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.datatype.name().to_owned(),
        shape: spec.shape.clone(),
    };
    let signature = &model.served.signature;
    ModelMetadataResponse {
        name,
        versions: versions.iter().map(ToString::to_string).collect(),
        platform: model.served.engine.platform().to_owned(),
        inputs: signature.inputs.iter().map(tensor).collect(),
        outputs: signature.outputs.iter().map(tensor).collect(),
        properties: HashMap::new(),
    }
}

/// Describes a model as Triton does. `max_batch_size` is 0: the shapes are complete, a first -1 being the batch.
pub fn config(model: &Loaded, name: String) -> ModelConfig {
    let signature = &model.served.signature;
    let input = |spec: &Spec| ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: spec.shape.clone(),
        optional: spec.optional,
    };
    let output = |spec: &Spec| ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: spec.shape.clone(),
    };
    ModelConfig {
        name,
        platform: model.served.engine.platform().to_owned(),
        max_batch_size: 0,
        input: signature.inputs.iter().map(input).collect(),
        output: signature.outputs.iter().map(output).collect(),
        backend: "verdict".to_owned(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
    }
}

/// Tells what a model has done since it was loaded.
pub fn statistics(model: &Loaded) -> ModelStatistics {
    let Counts { success, fail, queue, infer, cached, executions, items, batches, last } =
        model.served.statistics.counts();
    let batch = |(size, span): (usize, Span)| InferBatchStatistics {
        batch_size: size as u64,
        compute_input: None,
        compute_infer: Some(duration(span)),
        compute_output: None,
    };
    // Reading and writing tensors is what of a call's time is neither waiting nor the engine's.
    let rest = Span { count: success.count, time: success.time.saturating_sub(queue.time + infer.time) };
    ModelStatistics {
        name: model.release.model.clone(),
        version: model.release.version.to_string(),
        last_inference: last.map_or(0, |at| u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)),
        inference_count: items,
        execution_count: executions,
        inference_stats: Some(InferStatistics {
            success: Some(duration(success)),
            fail: Some(duration(fail)),
            queue: Some(duration(queue)),
            compute_input: Some(duration(rest)),
            compute_infer: Some(duration(infer)),
            compute_output: Some(StatisticDuration { count: success.count, ns: 0 }),
            cache_hit: Some(StatisticDuration { count: cached, ns: 0 }),
            cache_miss: None,
        }),
        batch_stats: batches.into_iter().map(batch).collect(),
        memory_usage: Vec::new(),
        response_stats: HashMap::new(),
    }
}

fn duration(span: Span) -> StatisticDuration {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    StatisticDuration { count: span.count, ns: nanos(span.time) }
}

fn data_type(datatype: Datatype) -> DataType {
    match datatype {
        Datatype::Bool => DataType::TypeBool,
        Datatype::Uint8 => DataType::TypeUint8,
        Datatype::Uint16 => DataType::TypeUint16,
        Datatype::Uint32 => DataType::TypeUint32,
        Datatype::Uint64 => DataType::TypeUint64,
        Datatype::Int8 => DataType::TypeInt8,
        Datatype::Int16 => DataType::TypeInt16,
        Datatype::Int32 => DataType::TypeInt32,
        Datatype::Int64 => DataType::TypeInt64,
        Datatype::Fp16 => DataType::TypeFp16,
        Datatype::Bf16 => DataType::TypeBf16,
        Datatype::Fp32 => DataType::TypeFp32,
        Datatype::Fp64 => DataType::TypeFp64,
        Datatype::Bytes => DataType::TypeString,
    }
}

/// Tells where a model stands in the repository's words.
pub fn indexed(standing: Standing) -> ModelIndex {
    let Standing { reference, state, serving, message, .. } = standing;
    let version = match (serving, &reference.selector) {
        (Some((version, _digest)), _) => version.to_string(),
        (None, Selector::Version(version)) => version.to_string(),
        (None, Selector::Alias(_)) => String::new(),
    };
    let state = match state {
        State::Serving => "READY",
        State::Loading => "LOADING",
        State::Failed => "UNAVAILABLE",
    };
    ModelIndex { name: reference.model, version, state: state.to_owned(), reason: message }
}
