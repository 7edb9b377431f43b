//! What runs a model, whatever its family: named tensors in, named tensors out.
//!
//! A family implements [`Engine`] and is served by the Open Inference Protocol; its typed calls stand beside it and are
//! found through [`Served::typed`]. What is the same for all is here: inputs are checked against the signature before
//! the engine sees them, and what it answers is cut to what was asked for. `conformance` says what holds for each.

mod classification;
mod embedding;
mod generation;
mod items;
mod reranking;
mod sparse;
pub mod statistics;
mod tabular;
pub mod tensor;

#[cfg(test)]
pub(crate) mod conformance;

use std::{any::Any, sync::Arc, time::Instant};

use anyhow::Context;
use async_trait::async_trait;
use verdict_inference::text::Token;

use self::{
    statistics::Statistics,
    tensor::{Data, Datatype, Spec, Tensor, refused},
};
use crate::{
    admission::Admission,
    error::{Error, Result},
    release::Task,
    text::Tokenizer,
    timing::Timing,
};

/// A model family's way to run a loaded model. Engines keep no state between calls.
#[async_trait]
pub trait Engine: Any + Send + Sync {
    /// What the model does.
    fn task(&self) -> Task;

    /// The platform by the protocol's custom, `<project>_<format>`.
    fn platform(&self) -> &'static str;

    /// Describes what goes in and comes out; asked once, when the model is loaded.
    fn signature(&self) -> Signature;

    /// The smallest inputs that are answered: they warm the model up.
    fn sample(&self) -> Vec<Tensor>;

    /// Computes what is wanted, in any order; more may be given. The inputs are those of the signature: present unless
    /// optional, of the type and shape it says. What else is wrong with them is the engine's to say.
    async fn compute(&self, inputs: Inputs, wanted: &Wanted, admission: Admission) -> Result<Answered>;

    /// Returns the tokenizer that can be handed out, where there is one.
    fn tokenizer(&self) -> Option<Tokenizer<'_>> {
        None
    }

    /// Splits a text into tokens, where the model has any.
    fn tokens(&self, _text: &str, _special: bool) -> Option<Vec<Token>> {
        None
    }
}

/// The tensors of a model.
#[derive(Clone, Debug)]
pub struct Signature {
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Spec>,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Asked {
    pub inputs: Vec<Tensor>,
    /// Names of the outputs, in the order of the answer; all of them when empty.
    pub outputs: Vec<String>,
    pub admission: Admission,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answered {
    pub outputs: Vec<Tensor>,
    pub timing: Timing,
}

/// Inputs that agree with the signature.
#[derive(Debug)]
pub struct Inputs(Vec<Tensor>);

/// Which outputs a call is about.
#[derive(Debug)]
pub struct Wanted(Vec<String>);

/// An engine with its signature and its statistics.
pub struct Served {
    pub engine: Box<dyn Engine>,
    pub signature: Signature,
    pub statistics: Arc<Statistics>,
}

impl Inputs {
    /// Takes an input out.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        let place = self.0.iter().position(|tensor| tensor.name == name)?;
        Some(self.0.swap_remove(place))
    }

    /// Takes an input out that is not optional.
    pub fn require(&mut self, name: &str) -> Result<Tensor> {
        self.take(name).ok_or_else(|| Error::Internal(anyhow::anyhow!("input `{name}` was not checked")))
    }

    /// Takes the flag of a setting out.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name)?.data {
            Data::Bool(values) => values.first().copied(),
            _ => None,
        }
    }
}

impl Wanted {
    /// Tells whether the caller named this output, rather than asking for all there are.
    pub fn names(&self, output: &str) -> bool {
        self.0.iter().any(|name| name == output)
    }

    /// Tells whether this output is part of the answer.
    pub fn has(&self, output: &str) -> bool {
        self.0.is_empty() || self.names(output)
    }
}

impl Served {
    /// Takes an engine into service: runs its sample, and refuses one whose answer is not what its signature says.
    ///
    /// Blocks. What the warm-up did is not in the statistics.
    pub fn warm(engine: Box<dyn Engine>, statistics: Arc<Statistics>) -> anyhow::Result<Self> {
        let signature = engine.signature();
        let served = Self { engine, signature, statistics };
        let sample = Asked { inputs: served.engine.sample(), outputs: Vec::new(), admission: Admission::default() };
        let answered = futures::executor::block_on(served.infer(sample)).context("warm-up")?;
        for (spec, output) in served.signature.outputs.iter().zip(&answered.outputs) {
            let agrees = spec.datatype == output.data.datatype() && spec.fits(&output.shape);
            anyhow::ensure!(agrees, "warm-up: output `{}` is not as the model says", spec.name);
        }
        served.statistics.clear();
        Ok(served)
    }

    /// Returns the engine as the family it is.
    pub fn typed<E: Engine>(&self) -> Option<&E> {
        let engine: &dyn Any = &*self.engine;
        engine.downcast_ref()
    }

    /// Answers a call.
    pub async fn infer(&self, asked: Asked) -> Result<Answered> {
        let started = Instant::now();
        let outcome = self.answer(asked).await;
        match &outcome {
            Ok(answered) => self.statistics.answered(started.elapsed(), &answered.timing),
            Err(_) => self.statistics.failed(started.elapsed()),
        }
        outcome
    }

    async fn answer(&self, asked: Asked) -> Result<Answered> {
        let Asked { inputs, outputs, admission } = asked;
        let inputs = check_inputs(&self.signature.inputs, inputs)?;
        check_outputs(&self.signature.outputs, &outputs)?;
        let wanted = Wanted(outputs);
        crate::text::before(admission.deadline, || ())?;
        let Answered { mut outputs, timing } = self.engine.compute(inputs, &wanted, admission).await?;
        let names: Vec<&str> = match wanted.0.is_empty() {
            true => self.signature.outputs.iter().map(|spec| spec.name.as_str()).collect(),
            false => wanted.0.iter().map(String::as_str).collect(),
        };
        let pick = |name: &str| {
            let place = outputs.iter().position(|output| output.name == name);
            let place = place.ok_or_else(|| anyhow::anyhow!("the engine did not compute output `{name}`"))?;
            Ok(outputs.swap_remove(place))
        };
        let outputs = names.into_iter().map(pick).collect::<Result<_>>()?;
        Ok(Answered { outputs, timing })
    }
}

/// Says what is wrong with the inputs of a call, as far as the signature tells.
fn check_inputs(specs: &[Spec], inputs: Vec<Tensor>) -> Result<Inputs> {
    let mut seen = vec![false; specs.len()];
    for tensor in &inputs {
        let Some(place) = specs.iter().position(|spec| spec.name == tensor.name) else {
            let problem = format!("is `{}`, which is no input of this model; {}", tensor.name, listed("inputs", specs));
            return Err(tensor.refused("INPUT_UNKNOWN", "name", problem));
        };
        let spec = &specs[place];
        if std::mem::replace(&mut seen[place], true) {
            return Err(tensor.refused("INPUT_REPEATED", "name", format!("is `{}` a second time", tensor.name)));
        }
        let datatype = tensor.data.datatype();
        if datatype != spec.datatype {
            let problem = format!("is {}: `{}` is {}", datatype.name(), spec.name, spec.datatype.name());
            return Err(tensor.refused("WRONG_DATATYPE", "datatype", problem));
        }
        if !spec.fits(&tensor.shape) {
            let problem = format!("is {:?}: `{}` is {:?}, -1 being any length", tensor.shape, spec.name, spec.shape);
            return Err(tensor.refused("WRONG_SHAPE", "shape", problem));
        }
    }
    match specs.iter().zip(seen).find(|(spec, seen)| !seen && !spec.optional) {
        Some((missing, _)) => {
            let problem = format!("has no `{}`; {}", missing.name, listed("inputs", specs));
            Err(refused("INPUT_MISSING", "inputs", problem))
        }
        None => Ok(Inputs(inputs)),
    }
}

/// Says what is wrong with the outputs a call asks for.
fn check_outputs(specs: &[Spec], outputs: &[String]) -> Result<()> {
    for (at, name) in outputs.iter().enumerate() {
        let field = format!("outputs[{at}].name");
        if !specs.iter().any(|spec| spec.name == *name) {
            let problem = format!("is `{name}`, which is no output of this model; {}", listed("outputs", specs));
            return Err(refused("OUTPUT_UNKNOWN", field, problem));
        }
        if outputs[..at].contains(name) {
            return Err(refused("OUTPUT_REPEATED", field, format!("is `{name}` a second time")));
        }
    }
    Ok(())
}

fn listed(what: &str, specs: &[Spec]) -> String {
    let told = specs.iter().map(|spec| {
        let optional = if spec.optional { ", optional" } else { "" };
        format!("`{}` ({} {:?}{optional})", spec.name, spec.datatype.name(), spec.shape)
    });
    format!("{what} are {}", told.collect::<Vec<_>>().join(", "))
}

/// Describes a text family's usual settings and outputs.
fn texts(name: &str) -> Spec {
    Spec::new(name, Datatype::Bytes, [-1])
}
