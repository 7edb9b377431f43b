//! Calls on their way to a model: a route chooses who answers, what comes of it is noted, and shadows get copies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt},
};
use prost::Message;
use tonic::{Code, Request, Response, Status};

use crate::{
    admission::{Admission, Call, Priority},
    catalog::Catalog,
    error::Result,
    routes::{
        board::{Board, Choice},
        guard::Outcome,
        scores::{Scored, Scores},
        shadow::{Copier, Room, ShadowTarget},
    },
};

/// A caller that leaves when this share of its time is over, or later, has waited in vain.
const IN_VAIN: f64 = 0.9;

/// Leads calls to models.
#[derive(Clone)]
pub struct Traffic {
    pub catalog: Arc<Catalog>,
    pub board: Arc<Board>,
    copier: Arc<Copier>,
}

/// A request that names a model.
pub trait Asks {
    /// Returns the reference or the route that is asked.
    fn model(&self) -> &str;
    /// Asks another.
    fn ask(&mut self, model: String);
}

/// Notes what came of a call when it is dropped.
pub struct Record {
    board: Arc<Board>,
    choice: Choice,
    begun: Instant,
    deadline: Option<Instant>,
    /// How long the answer took, whether it failed, what it scores; `None` while there is none.
    ended: Option<(Duration, bool, (f64, u32))>,
}

/// A shadow that gets a copy, with the room for it.
struct Copy {
    shadow: Arc<ShadowTarget>,
    room: Room,
}

impl Traffic {
    /// Leads calls by `board` to the models of `catalog`.
    pub fn new(catalog: Arc<Catalog>, board: Arc<Board>, copier: Copier) -> Self {
        Self { catalog, board, copier: Arc::new(copier) }
    }

    /// Has a call answered by `handler`; by a route where it names one.
    pub async fn call<Q, A, H>(&self, mut request: Request<Q>, handler: H) -> std::result::Result<Response<A>, Status>
    where
        Q: Asks + Message + Clone + 'static,
        A: Scored + Send + 'static,
        H: Fn(Arc<Catalog>, Request<Q>) -> BoxFuture<'static, std::result::Result<Response<A>, Status>>
            + Clone
            + Send
            + 'static,
    {
        let Some((record, call)) = self.begin(&mut request)? else {
            return handler(self.catalog.clone(), request).await;
        };
        let copies = self.copies(&record.choice, || request.get_ref().encoded_len());
        let copied = (!copies.is_empty()).then(|| request.get_ref().clone());
        let answer = handler(self.catalog.clone(), request).await;
        let scores = match &answer {
            Ok(answer) => Ok(answer.get_ref().scores()),
            Err(status) => Err(status.code()),
        };
        let primary = record.choice.target.name.clone();
        record.end(scores.as_ref().map(Scores::total).map_err(|code| *code));
        if let (Some(copied), Ok(given)) = (copied, scores) {
            for Copy { shadow, room } in copies {
                let mut request = Request::new(copied.clone());
                request.get_mut().ask(shadow.reference.to_string());
                request.extensions_mut().insert(spare(&call));
                let (handler, catalog) = (handler.clone(), self.catalog.clone());
                let answer = async move {
                    let answer = handler(catalog, request).await.map_err(|status| told(&status))?;
                    Ok(answer.into_inner().scores())
                };
                let (primary, given) = (primary.clone(), given.clone());
                room.fill(move || Box::pin(shadow.compare(primary, given, Box::pin(answer))));
            }
        }
        answer
    }

    /// Has a call answered by a stream that `handler` opens; by a route where it names one. Its answer took as long as
    /// the first message did. It is not copied.
    pub async fn open<Q, A, H>(
        &self,
        mut request: Request<Q>,
        handler: H,
    ) -> std::result::Result<Response<BoxStream<'static, std::result::Result<A, Status>>>, Status>
    where
        Q: Asks,
        A: Send + 'static,
        H: FnOnce(
            Arc<Catalog>,
            Request<Q>,
        ) -> BoxFuture<
            'static,
            std::result::Result<Response<BoxStream<'static, std::result::Result<A, Status>>>, Status>,
        >,
    {
        let Some((mut record, _)) = self.begin(&mut request)? else {
            return handler(self.catalog.clone(), request).await;
        };
        match handler(self.catalog.clone(), request).await {
            Ok(answer) => Ok(answer.map(|messages| messages.inspect(move |message| record.message(message)).boxed())),
            Err(status) => {
                record.end(Err(status.code()));
                Err(status)
            }
        }
    }

    /// Has a route named by a request replaced by who takes the call, and nothing noted.
    pub fn resolve<Q: Asks>(&self, request: &mut Request<Q>) -> Result<()> {
        if let Some(choice) = self.choose(request)?.map(|(choice, _)| choice) {
            request.get_mut().ask(choice.target.name.clone());
        }
        Ok(())
    }

    /// Begins the record of a call that `choice` takes.
    pub fn record(&self, choice: Choice, admission: &Admission) -> Record {
        let (board, begun) = (self.board.clone(), Instant::now());
        Record { board, choice, begun, deadline: admission.deadline, ended: None }
    }

    /// Has shadows score a copy of a call that `primary` answered with `given`; `score` makes the work for a reference.
    pub fn shadow(
        &self,
        choice: &Choice,
        call: &Call,
        bytes: usize,
        given: &Scores,
        score: impl Fn(String, Call) -> BoxFuture<'static, std::result::Result<Scores, String>>,
    ) {
        for Copy { shadow, room } in self.copies(choice, || bytes) {
            let answer = score(shadow.reference.to_string(), spare(call));
            let (primary, given) = (choice.target.name.clone(), given.clone());
            room.fill(move || Box::pin(shadow.compare(primary, given, answer)));
        }
    }

    fn begin<Q: Asks>(&self, request: &mut Request<Q>) -> Result<Option<(Record, Call)>> {
        let Some((choice, call)) = self.choose(request)? else { return Ok(None) };
        request.get_mut().ask(choice.target.name.clone());
        Ok(Some((self.record(choice, &call.admission), call)))
    }

    fn choose<Q: Asks>(&self, request: &mut Request<Q>) -> Result<Option<(Choice, Call)>> {
        let call = Call::of(request)?;
        let choice = self.board.choose(request.get_ref().model(), call.routing_key.as_deref());
        // Read once, for the handler as well.
        request.extensions_mut().insert(call.clone());
        Ok(choice.map(|choice| (choice, call)))
    }

    /// Takes room for a copy for each shadow whose turn it is.
    fn copies(&self, choice: &Choice, bytes: impl Fn() -> usize) -> Vec<Copy> {
        let live = &choice.live;
        let shadows = live.shadows.iter().zip(&live.kept.route.shadows);
        let due = shadows.filter(|(_, shadow)| shadow.share >= 1.0 || rand::random::<f64>() < shadow.share);
        due.filter_map(|(shadow, _)| match self.copier.room(bytes()) {
            Some(room) => Some(Copy { shadow: shadow.clone(), room }),
            None => {
                shadow.dropped();
                None
            }
        })
        .collect()
    }
}

impl Record {
    /// Returns who takes the call.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Notes the answer's scores, or the code it failed with.
    pub fn end(mut self, answer: std::result::Result<(f64, u32), Code>) {
        let took = self.begun.elapsed();
        self.ended = match answer {
            Ok(scores) => Some((took, false, scores)),
            // Nobody's fault: no answer was wanted, or it was given before.
            Err(Code::Cancelled | Code::AlreadyExists) => None,
            Err(_) => Some((took, true, (0.0, 0))),
        };
        if self.ended.is_none() {
            self.deadline = None;
        }
    }

    fn message<A>(&mut self, message: &std::result::Result<A, Status>) {
        let failed = message.as_ref().is_err_and(|status| status.code() != Code::Cancelled);
        let took = self.ended.map_or_else(|| self.begun.elapsed(), |(took, ..)| took);
        self.ended = Some((took, failed, (0.0, 0)));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let in_vain = || {
            let whole = self.deadline?.saturating_duration_since(self.begun);
            (took >= whole.mul_f64(IN_VAIN)).then_some((took, true, (0.0, 0)))
        };
        if let Some((took, failed, scores)) = self.ended.or_else(in_vain) {
            self.board.note(&self.choice, Outcome { took, failed, scores });
        }
    }
}

/// Makes the call of a copy: nobody waits for it.
fn spare(call: &Call) -> Call {
    let admission = Admission { deadline: None, tenant: call.admission.tenant.clone(), priority: Priority::Shadow };
    Call { admission, routing_key: None }
}

/// Says why a copy failed.
pub fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// A route has no versions: a request that names one is not about a route.
impl Asks for verdict_api::inference::ModelInferRequest {
    fn model(&self) -> &str {
        if self.model_version.is_empty() { &self.model_name } else { "" }
    }

    fn ask(&mut self, model: String) {
        self.model_name = model;
    }
}

macro_rules! asks {
    ($($request:ident),+ $(,)?) => { $(
        impl Asks for verdict_api::predict::$request {
            fn model(&self) -> &str {
                &self.model
            }

            fn ask(&mut self, model: String) {
                self.model = model;
            }
        }
    )+ };
}

asks!(
    ClassifyRequest,
    EmbedRequest,
    EmbedSparseRequest,
    ExplainRequest,
    GenerateRequest,
    GetTokenizerRequest,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
);
