//! Connections and routes: who may ask, how long a request may be and take, and how the server ends.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State as Shared},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    middleware::{self, Next},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    anthropic,
    error::{ApiError, Dialect, json_response},
    fields::{self, Fields},
    generation::Generation,
    openai::{self, OpenAi, Sent},
    reply::{self, Form},
    responses,
    state::State,
};

/// Time that the head of a request may take.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Time that its body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bytes of a head at most.
const HEAD_BYTES: usize = 32 << 10;

/// Fields of a head at most.
const HEAD_FIELDS: usize = 64;

/// Connections at once; others wait to be accepted.
const CONNECTIONS: usize = 128;

/// Bytes that one permit for bodies stands for.
pub const BODY_GRAIN: usize = 1024;

/// Paths that ask for no key: the page does itself.
const FREE: &[&str] = &["/", "/health"];

/// The page at `/`.
const PAGE: &str = include_str!("page.html");

/// What the page may do: nothing but what it brings, and ask this server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Reply = Response<Body>;

/// Accepts connections until `closing` says so, and then serves those that are open until they are done.
pub async fn accept(listener: TcpListener, state: Arc<State>, mut closing: watch::Receiver<bool>) {
    let router = router(state);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let accepted = first(listener.accept(), closing.wait_for(|closing| *closing)).await;
        let stream = match accepted {
            None => break,
            Some(Ok((stream, _))) => stream,
            // Out of descriptors, say: those that are open will end.
            Some(Err(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES).max_headers(HEAD_FIELDS);
        let service = TowerToHyperService::new(router.clone());
        let mut closing = closing.clone();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
            if first(connection.as_mut(), closing.wait_for(|closing| *closing)).await.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
            drop(place);
        });
    }
    // Those that still hold a place are being served.
    let _ = room.acquire_many(CONNECTIONS as u32).await;
}

/// The output of `work`, or `None` if `end` comes first.
async fn first<T>(work: impl Future<Output = T>, end: impl Future) -> Option<T> {
    let (mut work, mut end) = (std::pin::pin!(work), std::pin::pin!(end));
    std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(output) = work.as_mut().poll(cx) {
            return std::task::Poll::Ready(Some(output));
        }
        end.as_mut().poll(cx).map(|_| None)
    })
    .await
}

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/responses", post(responses_route))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokenize))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/state", get(page_state))
        .route("/", get(page))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(state.clone(), guard))
        .with_state(state)
}

async fn no_path() -> Reply {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such path").response(Dialect::OpenAi)
}

async fn no_method(method: Method) -> Reply {
    let sentence = format!("this path does not take {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, sentence).response(Dialect::OpenAi)
}

/// Looks at the key, and counts the reply.
async fn guard(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Reply {
    let dialect = if request.uri().path().starts_with("/v1/messages") { Dialect::Anthropic } else { Dialect::OpenAi };
    let response = if state.closing.load(Relaxed) {
        ApiError::shutting_down().response(dialect)
    } else if !FREE.contains(&request.uri().path()) && !may_ask(&state, request.headers()) {
        let sentence = "this server wants its API key (Authorization: Bearer KEY, or x-api-key: KEY)";
        ApiError::new(StatusCode::UNAUTHORIZED, sentence).response(dialect)
    } else {
        next.run(request).await
    };
    state.metrics.replied(response.status().as_u16());
    response
}

/// In the same time wherever a wrong key differs. (Its length shows.)
fn may_ask(state: &State, headers: &HeaderMap) -> bool {
    let Some(key) = &state.api_key else { return true };
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
    given.is_some_and(|given| bool::from(given.ct_eq(key.as_bytes())))
}

/// The body, within the limits of length and time, as fields.
async fn read(state: &State, request: Request) -> Result<(Fields, tokio::sync::OwnedSemaphorePermit), ApiError> {
    let too_long = || {
        let sentence = format!("the body has more than {} bytes", state.max_body);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    };
    let body = request.into_body();
    let most = state.max_body as u64;
    if body.size_hint().lower() > most {
        return Err(too_long());
    }
    let expected = body.size_hint().upper().unwrap_or(most).min(most) as usize;
    let slow = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let permits = expected.div_ceil(BODY_GRAIN).max(1) as u32;
    let held = timeout(BODY_TIME, state.bodies.clone().acquire_many_owned(permits)).await.map_err(|_| slow())?;
    let held = held.map_err(|_| ApiError::shutting_down())?;
    let bytes = match timeout(BODY_TIME, axum::body::to_bytes(body, state.max_body)).await {
        Err(_) => return Err(slow()),
        Ok(Ok(bytes)) => bytes,
        // A body of unknown length was longer, or the client left, who will not read this.
        Ok(Err(_)) => return Err(too_long()),
    };
    Ok((fields::parse(&bytes)?, held))
}

/// Reads a request with `parse`, one at a time, off the threads that serve connections.
async fn parsed<T: Send + 'static>(
    state: &Arc<State>,
    request: Request,
    parse: impl FnOnce(Fields, &State) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (fields, held) = read(state, request).await?;
    let _one = state.reading.acquire().await.map_err(|_| ApiError::shutting_down())?;
    let own = state.clone();
    let read = tokio::task::spawn_blocking(move || parse(fields, &own)).await;
    drop(held);
    read.unwrap_or_else(|_| Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read")))
}

/// Asks the engine, and answers in this form.
async fn answered(
    state: &Arc<State>,
    generation: Result<Generation, ApiError>,
    id: String,
    dialect: Dialect,
    form: MakeForm,
    reads_chat: bool,
) -> Reply {
    let asked = generation.and_then(|g| reply::ask(&g, state, &id, reads_chat).map(|asked| (asked, g)));
    match asked {
        Err(error) => error.response(dialect),
        Ok((asked, generation)) if generation.stream => reply::stream(asked, form(&generation)),
        Ok((asked, generation)) => reply::whole(asked, form(&generation), dialect).await,
    }
}

/// Makes the form of a reply, once it is known what was asked.
type MakeForm = Box<dyn FnOnce(&Generation) -> Box<dyn Form> + Send>;

fn openai_form(state: &State, id: &str, chat: bool) -> MakeForm {
    let (id, model, created) = (id.to_owned(), state.model.clone(), state.unix_seconds());
    let converser = state.converser.clone();
    Box::new(move |generation| {
        let sent = (0..generation.choices).map(|_| Sent::default()).collect();
        let (usage, logprobs) = (generation.stream_usage, generation.logprobs.is_some());
        Box::new(OpenAi { chat, id, model, created, usage, converser, logprobs, sent })
    })
}

async fn chat(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    let id = state.id("chatcmpl-");
    let form = openai_form(&state, &id, true);
    let generation = parsed(&state, request, openai::chat).await;
    answered(&state, generation, id, Dialect::OpenAi, form, true).await
}

async fn completions(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    let id = state.id("cmpl-");
    let form = openai_form(&state, &id, false);
    let generation = parsed(&state, request, openai::completion).await;
    answered(&state, generation, id, Dialect::OpenAi, form, false).await
}

async fn messages(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    let id = state.id("msg_");
    let (own, model) = (id.clone(), state.model.clone());
    let generation = parsed(&state, request, anthropic::messages).await;
    let form: MakeForm = Box::new(move |generation| {
        Box::new(anthropic::Messages::new(
            own,
            model,
            generation.request.prompt.len(),
            generation.request.rules.stop.clone(),
        ))
    });
    answered(&state, generation, id, Dialect::Anthropic, form, true).await
}

async fn count_tokens(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    match parsed(&state, request, anthropic::count).await {
        Ok(tokens) => json_response(StatusCode::OK, &json!({"input_tokens": tokens})),
        Err(error) => error.response(Dialect::Anthropic),
    }
}

async fn responses_route(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    let id = state.id("resp_");
    let (own, model, created) = (id.clone(), state.model.clone(), state.unix_seconds());
    let generation = parsed(&state, request, responses::request).await;
    let form: MakeForm = Box::new(move |_| Box::new(responses::Responses::new(own, model, created)));
    answered(&state, generation, id, Dialect::OpenAi, form, true).await
}

async fn models(Shared(state): Shared<Arc<State>>) -> Reply {
    let model = json!({
        "id": state.model, "object": "model", "created": 0, "owned_by": "hotset", "context_length": state.n_ctx,
    });
    json_response(StatusCode::OK, &json!({"object": "list", "data": [model]}))
}

async fn tokenize(Shared(state): Shared<Arc<State>>, request: Request) -> Reply {
    let tokens = parsed(&state, request, |mut fields, state| {
        let content = match fields.require("content")? {
            Value::String(text) => text,
            other => return Err(fields::wrong("content", "a string", &other)),
        };
        let add_special = fields.bool("add_special")?.unwrap_or(false);
        let parse_special = fields.bool("parse_special")?.unwrap_or(true);
        fields.finish(&[])?;
        Ok(state.converser.tokenizer.encode(&content, add_special, parse_special))
    });
    match tokens.await {
        Ok(tokens) => json_response(StatusCode::OK, &json!({"tokens": tokens})),
        Err(error) => error.response(Dialect::OpenAi),
    }
}

async fn page() -> Reply {
    let mut response = Response::new(Body::from(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn page_state(Shared(state): Shared<Arc<State>>) -> Reply {
    json_response(StatusCode::OK, &state.metrics.state(&state.model))
}

async fn health() -> Reply {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Reply {
    let mut response = Response::new(Body::from(Bytes::from(state.metrics.text())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What people are told of where the server is.
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
