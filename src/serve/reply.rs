//! From what the engine says to what a client gets: whole replies, and streams of events.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Response, StatusCode, header},
};
use hyper::body::Frame;
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use super::{
    engine::{Job, Probs, SHUTTING_DOWN, Update},
    error::{ApiError, Dialect, json_response},
    generation::Generation,
    logprobs,
    state::State,
};
use crate::{
    chat::{Delta, Parser, ToolCall, Tools},
    scheduler::Outcome,
};

/// Between two signs of life of a stream without events.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A client that takes nothing for so long has left.
const SLOW_CLIENT: Duration = Duration::from_secs(60);

/// Pieces of a stream that wait for a slow client.
const PIECES: usize = 16;

/// One answer, whole.
pub struct Said {
    /// What the model thought.
    pub reasoning: String,
    /// What it said.
    pub content: String,
    /// What it called.
    pub calls: Vec<ToolCall>,
    /// How likely its tokens were, where that was asked for.
    pub probs: Vec<Probs>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a client wants to get an answer.
pub trait Form: Send {
    /// Events before a choice's first delta.
    fn begin(&mut self, choice: usize) -> String;
    /// How likely the next token is, before the delta that has its text.
    fn probs(&mut self, _choice: usize, _probs: Probs) {}
    /// Events of a delta.
    fn delta(&mut self, choice: usize, delta: Delta) -> String;
    /// Events after a choice's last delta.
    fn end(&mut self, choice: usize, outcome: &Outcome) -> String;
    /// Events at the end of the stream.
    fn close(&mut self, outcomes: &[Outcome]) -> String;
    /// Events of an error, after which nothing comes.
    fn failed(&mut self, error: &ApiError) -> String;
    /// The reply that is no stream.
    fn whole(&mut self, said: Vec<Said>) -> Value;
}

/// Cancels the jobs of a request that nobody waits for any more.
struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The jobs of a request: one for each choice, so that the prompt is computed once.
pub struct Asked {
    answers: Vec<mpsc::UnboundedReceiver<Update>>,
    parsers: Vec<Parser>,
    guard: Guard,
    /// What the ids of calls begin with.
    id: String,
}

/// Puts a request into the queue.
///
/// # Errors
/// 429 if it is full, 400 if the prompt is too long, 503 if the server ends.
pub fn ask(generation: &Generation, state: &State, id: &str, reads_chat: bool) -> Result<Asked, ApiError> {
    let (n, n_ctx) = (generation.request.prompt.len(), state.n_ctx);
    if n > n_ctx {
        return Err(ApiError::bad(format!("the prompt has {n} tokens, and the context holds {n_ctx}")));
    }
    logprobs::check(generation.logprobs, &generation.request.rules, n, n_ctx)?;
    let guard = Guard(Arc::default());
    let (mut answers, mut parsers) = (Vec::new(), Vec::new());
    let plain = crate::chat::Family::of_template("");
    let family = if reads_chat { state.converser.template.family() } else { &plain };
    let choices = generation.choices as usize;
    let places = state.jobs.try_reserve_many(choices).map_err(|e| match e {
        mpsc::error::TrySendError::Full(()) => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full: try again later")
        }
        mpsc::error::TrySendError::Closed(()) => ApiError::shutting_down(),
    })?;
    for (choice, place) in (0..).zip(places) {
        let (updates, answer) = mpsc::unbounded_channel();
        let mut request = generation.request.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add(choice);
        state.metrics.enqueued();
        place.send(Job {
            id: id.to_owned(),
            request,
            logprobs: generation.logprobs,
            updates,
            cancelled: guard.0.clone(),
            queued: Instant::now(),
        });
        answers.push(answer);
        parsers.push(Parser::new(family, Tools::new(&generation.tools), &generation.prompt_text));
    }
    Ok(Asked { answers, parsers, guard, id: id.to_owned() })
}

/// What the end of the engine's channel means.
fn lost() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has stopped")
}

/// What the engine could not do.
fn failure(sentence: String) -> ApiError {
    match sentence == SHUTTING_DOWN {
        true => ApiError::shutting_down(),
        false => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, sentence),
    }
}

/// Gives a call an id where the model gave none.
fn with_id(mut delta: Delta, id: &str, calls: &mut usize) -> Delta {
    if let Delta::Call(call) = &mut delta {
        if call.id.is_empty() {
            call.id = format!("call_{id}_{calls}");
        }
        *calls += 1;
    }
    delta
}

/// The reply to a request that is no stream.
pub async fn whole(mut asked: Asked, mut form: Box<dyn Form>, dialect: Dialect) -> Response<Body> {
    let mut all = Vec::new();
    let mut n_calls = 0;
    for (answer, parser) in asked.answers.iter_mut().zip(&mut asked.parsers) {
        let (mut reasoning, mut content, mut calls, mut probs) = (String::new(), String::new(), Vec::new(), Vec::new());
        let mut take = |deltas: Vec<Delta>| {
            for delta in deltas {
                match with_id(delta, &asked.id, &mut n_calls) {
                    Delta::Reasoning(text) => reasoning += &text,
                    Delta::Content(text) => content += &text,
                    Delta::Call(call) => calls.push(call),
                }
            }
        };
        let outcome = loop {
            match answer.recv().await {
                Some(Update::Text(text, prob)) => {
                    probs.extend(prob);
                    take(parser.push(&text));
                }
                Some(Update::Done(outcome)) => break outcome,
                Some(Update::Failed(sentence)) => return failure(sentence).response(dialect),
                None => return lost().response(dialect),
            }
        };
        take(parser.finish());
        all.push(Said { reasoning, content, calls, probs, outcome });
    }
    drop(asked.guard);
    json_response(StatusCode::OK, &form.whole(all))
}

/// The reply as a stream of events, from a task of its own.
pub fn stream(asked: Asked, form: Box<dyn Form>) -> Response<Body> {
    let (pieces, body) = mpsc::channel(PIECES);
    let Asked { answers, parsers, guard, id } = asked;
    tokio::spawn(async move {
        // A client that has left is seen by the guard, which the body holds.
        let _ = events(answers, parsers, form, &pieces, &id).await;
    });
    let mut response = Response::new(Body::new(Pieces { body, _guard: guard }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// `None` once the client has left.
async fn events(
    answers: Vec<mpsc::UnboundedReceiver<Update>>,
    parsers: Vec<Parser>,
    mut form: Box<dyn Form>,
    pieces: &mpsc::Sender<Bytes>,
    id: &str,
) -> Option<()> {
    let (mut outcomes, mut calls) = (Vec::new(), 0);
    for (choice, (mut answer, mut parser)) in answers.into_iter().zip(parsers).enumerate() {
        send(pieces, form.begin(choice)).await?;
        let outcome = loop {
            match timeout(KEEP_ALIVE, answer.recv()).await {
                Err(_) => send(pieces, ": still here\n\n".to_owned()).await?,
                Ok(Some(Update::Text(text, probs))) => {
                    if let Some(probs) = probs {
                        form.probs(choice, probs);
                    }
                    for delta in parser.push(&text) {
                        send(pieces, form.delta(choice, with_id(delta, id, &mut calls))).await?;
                    }
                }
                Ok(Some(Update::Done(outcome))) => break outcome,
                Ok(Some(Update::Failed(sentence))) => return send(pieces, form.failed(&failure(sentence))).await,
                Ok(None) => return send(pieces, form.failed(&lost())).await,
            }
        };
        for delta in parser.finish() {
            send(pieces, form.delta(choice, with_id(delta, id, &mut calls))).await?;
        }
        send(pieces, form.end(choice, &outcome)).await?;
        outcomes.push(outcome);
    }
    send(pieces, form.close(&outcomes)).await
}

async fn send(pieces: &mpsc::Sender<Bytes>, text: String) -> Option<()> {
    if text.is_empty() {
        return Some(());
    }
    timeout(SLOW_CLIENT, pieces.send(text.into())).await.ok()?.ok()
}

/// A body of pieces as they come.
struct Pieces {
    body: mpsc::Receiver<Bytes>,
    _guard: Guard,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.body.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}
