//! Media types: what bodies are understood, what answers a client accepts, warnings.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::front::slow;
use crate::golang;
use crate::registry::protobuf;
use crate::table::{self, IncludeObject};

/// Most bytes of a request body, as upstream.
pub(crate) const BODY_LIMIT: usize = 3 << 20;

/// Deepest nesting of an object. The parser stops at 128; a patch can nest what it adds in what is there.
pub(crate) const MAX_DEPTH: usize = 120;

const SERVED: &str = "application/json";

/// How a client wants objects shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// As they are.
    Plain,
    /// As rows of a table.
    Table {
        version: &'static str,
        include: IncludeObject,
    },
    /// Only their metadata.
    Metadata,
}

impl View {
    /// Chooses from the Accept header: the first range that can be served.
    pub(crate) fn negotiate(headers: &HeaderMap, include: IncludeObject) -> Result<Self, ApiError> {
        let accept = accept(headers);
        if accept.trim().is_empty() {
            return Ok(Self::Plain);
        }
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            if !matches!(
                parts.next(),
                Some("application/json" | "application/*" | "*/*")
            ) {
                continue;
            }
            let parameter = |name: &str| {
                parts
                    .clone()
                    .filter_map(|p| p.split_once('='))
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value)
            };
            match parameter("as") {
                None => return Ok(Self::Plain),
                Some("Table") => {
                    if let Some(version) = table::requested(&accept) {
                        return Ok(Self::Table { version, include });
                    }
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList")
                    if parameter("v") == Some("v1") =>
                {
                    return Ok(Self::Metadata);
                }
                Some(_) => {}
            }
        }
        Err(ApiError::NotAcceptable(SERVED.into()))
    }
}

pub(crate) fn accept(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    values.join(",")
}

/// The object as PartialObjectMetadata.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// The media type of the body, without parameters; JSON where none is given.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    match given.split(';').next().map(str::trim) {
        None | Some("") => "application/json".into(),
        Some(media) => media.to_ascii_lowercase(),
    }
}

/// Reads a body of bounded size.
pub(crate) async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(whole) => Ok(whole.to_bytes().to_vec()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => {
            Err(ApiError::TooLarge(BODY_LIMIT))
        }
        Err(e) if slow::is_too_slow(&*e) => Err(ApiError::TooSlow),
        Err(e) => Err(ApiError::BadRequest(format!(
            "cannot read the request body: {e}"
        ))),
    }
}

/// Parses a body: JSON, YAML, or protobuf of a known kind.
pub(crate) fn parse(media: &str, body: &[u8]) -> Result<Value, ApiError> {
    match media {
        "application/json" => parse_json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let text = std::str::from_utf8(body)
                .map_err(|e| ApiError::BadRequest(format!("body is not UTF-8: {e}")))?;
            serde_saphyr::from_str(text)
                .map_err(|e| ApiError::BadRequest(format!("error converting YAML to JSON: {e}")))
        }
        protobuf::MEDIA => protobuf::parse(body),
        _ => Err(ApiError::UnsupportedMediaType(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf".into(),
        )),
    }
}

/// Parses a body that has to be an object; a body that is none is refused as one of this kind.
pub(crate) fn decode(kind: &str, media: &str, body: &[u8]) -> Result<Value, ApiError> {
    let wrong = |why: &str| {
        ApiError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse \
             error: {why} ({})",
            summary(body)
        ))
    };
    if media == "application/json" {
        match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Err(e) if e.is_eof() => return Err(wrong("unexpected end of JSON input")),
            _ => {}
        }
    }
    let value = parse(media, body)?;
    if value.is_object() || value.is_null() {
        return Ok(value);
    }
    let found = golang::json_type(&value);
    Err(wrong(&format!(
        "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \
         \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )))
}

/// The start of a body, for messages: text of an object, bytes of anything else.
pub(crate) fn summary(body: &[u8]) -> String {
    const LIMIT: usize = 30;
    let start = &body[..body.len().min(LIMIT)];
    let more = if body.len() > LIMIT { " ..." } else { "" };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => {
            let bytes: String = start.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{bytes}{more}")
        }
    }
}

/// Parses JSON; its depth is bounded by serde_json.
pub(crate) fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Value::deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|e| ApiError::BadRequest(format!("couldn't decode the request body as JSON: {e}")))
}

/// Whether a value is nested at most so deep.
pub(crate) fn is_shallow(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| is_shallow(item, depth - 1)),
        Value::Object(map) => depth > 0 && map.values().all(|item| is_shallow(item, depth - 1)),
        _ => true,
    }
}

/// A JSON answer.
pub(crate) fn answer(code: StatusCode, value: &Value, warnings: &[String]) -> Response<Body> {
    answer_text(code, value.to_string().into(), warnings)
}

/// The same, of JSON that is there as text.
pub(crate) fn answer_text(code: StatusCode, text: Bytes, warnings: &[String]) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    warn(headers, warnings);
    response
}

/// Adds `Warning: 299 - "…"` headers, each text once, quoted as RFC 9110 has it.
pub(crate) fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    for (at, text) in warnings.iter().enumerate() {
        if warnings[..at].contains(text) {
            continue;
        }
        let mut quoted = String::with_capacity(text.len() + 8);
        for c in text.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            headers.append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(accept: &str) -> Result<View, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        View::negotiate(&headers, IncludeObject::Metadata)
    }

    #[test]
    fn accept_header() {
        assert_eq!(view("application/json"), Ok(View::Plain));
        assert_eq!(
            view("application/vnd.kubernetes.protobuf,application/json"),
            Ok(View::Plain)
        );
        assert_eq!(view("text/html, */*;q=0.1"), Ok(View::Plain));
        assert!(view("application/vnd.kubernetes.protobuf").is_err());
        assert_eq!(
            view("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
            Ok(View::Metadata)
        );
    }

    #[test]
    fn warnings_are_quoted_and_not_repeated() {
        let mut headers = HeaderMap::new();
        warn(
            &mut headers,
            &["use \"x\"\n".into(), "b\\".into(), "b\\".into()],
        );
        let all: Vec<_> = headers
            .get_all(header::WARNING)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect();
        assert_eq!(all, [r#"299 - "use \"x\"""#, r#"299 - "b\\""#]);
    }

    #[test]
    fn bodies() {
        assert_eq!(
            parse("application/yaml", b"a: [1, x]\n").unwrap(),
            json!({"a": [1, "x"]})
        );
        assert!(parse("application/json", b"{} x").is_err());
        assert!(parse("application/json", "[".repeat(10_000).as_bytes()).is_err());
        assert!(matches!(
            parse("text/plain", b""),
            Err(ApiError::UnsupportedMediaType(_))
        ));
    }
}
