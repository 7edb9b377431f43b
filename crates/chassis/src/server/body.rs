//! Bodies: what comes in is held to the message limit, what goes out is watched to its end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::context::{self, RequestContext};
use crate::server::stack::{Call, Progress};
use crate::status;

const PREFIX: usize = 5;

/// A request body whose messages are at most `limit` bytes; a longer one is refused by its prefix, before it arrives,
/// and after those before it.
pub(crate) struct Incoming {
    inner: Body,
    messages: Messages,
    /// What comes after the last good bytes.
    refused: Option<Status>,
    progress: Progress,
}

impl Incoming {
    pub(crate) fn new(inner: Body, limit: usize, progress: Progress) -> Self {
        Self { inner, messages: Messages { limit, prefix: [0; PREFIX], have: 0, left: 0 }, refused: None, progress }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(status) = self.refused.take() {
            return Poll::Ready(Some(Err(status)));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.progress.mark();
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err((good, status)) = self.messages.pass(data)
        {
            self.inner = Body::empty();
            if good == 0 {
                return Poll::Ready(Some(Err(status)));
            }
            self.refused = Some(status);
            return Poll::Ready(Some(Ok(Frame::data(data.slice(..good)))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.refused.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.refused {
            Some(_) => SizeHint::default(),
            None => self.inner.size_hint(),
        }
    }
}

/// Follows the gRPC framing: one byte of flags, four of length, the message.
struct Messages {
    limit: usize,
    prefix: [u8; PREFIX],
    have: usize,
    left: usize,
}

impl Messages {
    /// Follows `all`; the error says how many bytes of it there are before the prefix of a message that is too long.
    fn pass(&mut self, all: &Bytes) -> Result<(), (usize, Status)> {
        let mut data = &all[..];
        while !data.is_empty() {
            let skipped = self.left.min(data.len());
            data.advance(skipped);
            self.left -= skipped;
            let taken = (PREFIX - self.have).min(data.len());
            if self.left > 0 || taken == 0 {
                continue;
            }
            self.prefix[self.have..self.have + taken].copy_from_slice(&data[..taken]);
            data.advance(taken);
            self.have += taken;
            if self.have == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.have = 0;
                self.left = u32::from_be_bytes(length) as usize;
                if self.left > self.limit {
                    let message = format!(
                        "a message of {} bytes is over the limit of {} bytes; send less at once, or raise --max-message-bytes",
                        self.left, self.limit
                    );
                    let good = (all.len() - data.len()).saturating_sub(PREFIX);
                    return Err((good, status::out_of_range("MESSAGE_TOO_LARGE", message)));
                }
            }
        }
        Ok(())
    }
}

/// An answer's body: polled inside the call's span and context, ended by the deadline or a panic, measured at its end.
pub(crate) struct Answer {
    inner: Body,
    call: Option<Call>,
    context: RequestContext,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Answer {
    pub(crate) fn new(inner: Body, call: Call, context: RequestContext) -> Self {
        Self { inner, call: Some(call), context, timer: None }
    }

    fn end(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
    }

    fn late(&mut self) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.fail(&status::deadline_exceeded("DEADLINE_EXCEEDED", "the answer did not end before the deadline"))
    }

    /// Ends the stream with trailers of our own.
    fn fail(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.inner = Body::empty();
        self.end(status.code());
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(call) = &this.call else { return Poll::Ready(None) };
        // The timer is set only where there is something to wait for: what is ready costs a look at the clock.
        if this.context.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return this.late();
        }
        let inner = Pin::new(&mut this.inner);
        let polled = call
            .span
            .in_scope(|| context::enter(&this.context, || catch_unwind(AssertUnwindSafe(|| inner.poll_frame(cx)))));
        // The panic hook has logged it, inside the span of this call.
        let Ok(polled) = polled else { return this.fail(&status::internal_unlogged()) };
        let Poll::Ready(frame) = polled else {
            let Some(deadline) = this.context.deadline else { return Poll::Pending };
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
            ready!(timer.as_mut().poll(cx));
            return this.late();
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code());
                    this.end(code);
                }
            }
            Some(Err(status)) => this.end(status.code()),
            None => this.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(limit: usize) -> Messages {
        Messages { limit, prefix: [0; PREFIX], have: 0, left: 0 }
    }

    fn framed(sizes: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for size in sizes {
            bytes.push(0);
            bytes.extend(u32::try_from(*size).unwrap().to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, *size));
        }
        bytes
    }

    #[test]
    fn messages_up_to_the_limit_pass_however_they_are_cut() {
        let bytes = framed(&[0, 3, 10, 1]);
        for step in 1..bytes.len() {
            let mut messages = messages(10);
            for piece in bytes.chunks(step) {
                messages.pass(&Bytes::copy_from_slice(piece)).unwrap();
            }
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let bytes = framed(&[3, 11]);
        for step in 1..bytes.len() {
            let mut messages = messages(10);
            let mut good = 0;
            let refused = bytes.chunks(step).any(|piece| match messages.pass(&Bytes::copy_from_slice(piece)) {
                Ok(()) => {
                    good += piece.len();
                    false
                }
                Err((more, _)) => {
                    good += more;
                    true
                }
            });
            assert!(refused, "in pieces of {step}");
            // The first message is whole, and of the second there is at most a part of its prefix.
            assert!((PREFIX + 3..2 * PREFIX + 3).contains(&good), "{good} in pieces of {step}");
        }
    }
}
