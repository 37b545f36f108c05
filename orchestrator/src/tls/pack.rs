//! Fills TLS records: many small writes become one record and one system call.
//!
//! HTTP/2 writes and flushes frame by frame. Straight onto TLS each frame would
//! be a record and a system call of its own, and a frame of 16 KiB with its
//! header even two records. Here a flush that follows a write is put off until
//! the connection has been polled once more: by then it has written all that it
//! had, and the second flush in a row, with nothing new, is done.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes held at most; more are written through. Four full TLS records.
const HELD_MAX: usize = 64 << 10;

/// A stream whose writes are packed. It holds no memory while nothing is held.
#[derive(Debug)]
pub(super) struct Packed<S> {
    stream: S,
    held: BytesMut,
    /// Something was written since the last flush.
    fresh: bool,
}

impl<S> Packed<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: BytesMut::new(),
            fresh: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Packed<S> {
    /// Writes all that is held.
    fn poll_empty(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.held))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.held.advance(written),
            }
        }
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Makes room, and says how much there is.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_MAX {
            ready!(self.poll_empty(context))?;
        }
        self.fresh = true;
        Poll::Ready(Ok(HELD_MAX - self.held.len()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Packed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(context))?;
        let mut left = room;
        for part in parts {
            let (taken, _) = part.split_at(part.len().min(left));
            self.held.extend_from_slice(taken);
            left -= taken.len();
        }
        Poll::Ready(Ok(room - left))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.fresh) {
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_empty(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Packed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A sink that counts the writes it gets.
    #[derive(Default)]
    struct Counting {
        writes: usize,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            self.bytes.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn writes_that_are_flushed_one_by_one_go_out_together_and_in_order() {
        let mut packed = Packed::new(Counting::default());
        let mut expected = Vec::new();
        for number in 0..1000_u32 {
            let line = format!("{number} ").repeat(20);
            packed.write_all(line.as_bytes()).await.unwrap();
            packed.flush().await.unwrap();
            expected.extend_from_slice(line.as_bytes());
        }
        packed.flush().await.unwrap();
        assert_eq!(packed.stream.bytes, expected);
        assert!(packed.stream.writes <= expected.len() / HELD_MAX + 1);
        assert_eq!(packed.held.capacity(), 0);
    }

    #[tokio::test]
    async fn a_full_pipe_loses_nothing_and_the_end_is_written() {
        let (near, mut far) = tokio::io::duplex(1000);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            let mut packed = Packed::new(near);
            packed.write_all(&sent).await.unwrap();
            packed.flush().await.unwrap();
            packed.shutdown().await.unwrap();
        });
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        writing.await.unwrap();
        assert_eq!(seen, expected);
    }
}
