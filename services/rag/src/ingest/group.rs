//! Groups of what is ready.

use std::task::Poll;

use futures::stream::{self, Stream, StreamExt};

/// Yields what `items` has ready in groups of 1 to `most`. A group ends early as well once its items weigh `enough`.
pub(super) fn group<T: Send>(
    items: impl Stream<Item = T> + Send,
    most: usize,
    weight: impl Fn(&T) -> usize + Send,
    enough: usize,
) -> impl Stream<Item = Vec<T>> + Send {
    let mut items = Box::pin(items.fuse());
    stream::poll_fn(move |context| {
        let (mut group, mut weighs) = (Vec::new(), 0);
        while group.len() < most && weighs < enough {
            match items.poll_next_unpin(context) {
                Poll::Ready(Some(item)) => {
                    weighs += weight(&item);
                    group.push(item);
                }
                Poll::Pending if group.is_empty() => return Poll::Pending,
                Poll::Ready(None) if group.is_empty() => return Poll::Ready(None),
                Poll::Pending | Poll::Ready(None) => break,
            }
        }
        Poll::Ready(Some(group))
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_group_ends_at_its_number_at_its_weight_and_where_nothing_is_ready() {
        let weights = stream::iter([1, 1, 1, 9, 1, 5, 5, 1]);
        let groups: Vec<_> = group(weights, 3, |weight| *weight, 6).collect().await;
        assert_eq!(groups, [vec![1, 1, 1], vec![9], vec![1, 5], vec![5, 1]]);

        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut groups = Box::pin(group(tokio_stream::wrappers::ReceiverStream::new(receiver), 3, |_| 1, 6));
        assert_eq!(groups.next().now_or_never(), None, "an empty group is none");
        sender.send(1).await.unwrap();
        assert_eq!(groups.next().await, Some(vec![1]), "it does not wait for more");
        drop(sender);
        assert_eq!(groups.next().await, None);
    }
}
