//! What every back-end must do: the cases are plain functions, the list of them is written once.

use super::*;
use crate::words::Words;

/// Makes a module with one test per case.
macro_rules! conformance {
    ($module:ident, $open:expr, [$($case:ident),* $(,)?]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    let (_keep, index) = $open.await;
                    super::$case(&index, &super::fresh()).await;
                }
            )*
        }
    };
}

macro_rules! all_cases {
    ($module:ident, $open:expr) => {
        conformance!(
            $module,
            $open,
            [
                the_first_maker_of_a_collection_decides_its_schema,
                a_collection_that_does_not_exist_is_not_found,
                what_was_stored_is_found_as_it_was,
                storing_the_same_again_changes_nothing,
                another_revision_takes_the_place_of_the_one_before,
                half_a_document_is_not_taken_for_the_whole,
                a_search_during_a_replacement_finds_one_or_the_other,
                two_replacements_at_once_leave_one_of_them_whole,
                deleting_takes_one_document_and_says_how_much,
                dense_ranks_by_cosine,
                sparse_ranks_by_rare_words_and_leaves_out_what_has_none,
                fusion_adds_reciprocal_ranks_from_one,
                a_filter_is_exact_and_needs_all,
                settling_loses_nothing,
            ]
        );
    };
}

all_cases!(edge, super::edge_index());
all_cases!(live_qdrant, super::qdrant_index());

async fn edge_index() -> (tempfile::TempDir, super::edge::EdgeIndex) {
    let dir = tempfile::tempdir().unwrap();
    let index = super::edge::EdgeIndex::open(dir.path()).unwrap();
    (dir, index)
}

async fn qdrant_index() -> ((), super::qdrant::QdrantIndex) {
    let url =
        std::env::var("TEST_QDRANT_URL").expect("TEST_QDRANT_URL is not set: it names a Qdrant server's gRPC port");
    ((), super::qdrant::QdrantIndex::connect(&url, None).unwrap())
}

fn fresh() -> Collection {
    Collection::new(&format!("t-{}", uuid::Uuid::new_v4().simple())).unwrap()
}

pub(super) fn schema() -> Schema {
    Schema { embedding_digest: "sha256:a".into(), dimensions: 4 }
}

/// A document of one point per text; its dense vectors point into the direction of `axis`.
pub(super) fn document(id: &str, revision: &str, axis: usize, texts: &[&str]) -> Points {
    let points = texts
        .iter()
        .zip(0..)
        .map(|(text, chunk)| {
            let passage = Passage {
                document_id: id.into(),
                revision: revision.into(),
                version: format!("sha256:{revision}"),
                title: format!("Title of {id}"),
                uri: format!("https://example.org/{id}"),
                chunk,
                chunks: texts.len() as u32,
                headings: vec!["A".into(), "B".into()],
                text: (*text).into(),
                start: 10 * u64::from(chunk),
                end: 10 * u64::from(chunk) + text.len() as u64,
                metadata: [("source".to_owned(), id.to_owned()), ("kind".to_owned(), "x=\"y\"".to_owned())].into(),
            };
            let mut dense = vec![0.1 * (chunk as f32 + 1.0); 4];
            dense[axis] = 1.0;
            Point { passage, dense, sparse: Sparse::of_passage(&Words::default(), text) }
        })
        .collect();
    Points { document_id: id.into(), revision: revision.into(), points }
}

async fn stored(index: &dyn Index, collection: &Collection, documents: Vec<Points>) -> Vec<Holding> {
    index.create(collection, &schema()).await.unwrap();
    index.replace(collection, documents).await.unwrap()
}

fn by_axis(axis: usize) -> By {
    let mut dense = vec![0.0; 4];
    dense[axis] = 1.0;
    By::Dense(dense)
}

fn by_words(text: &str) -> By {
    By::Sparse(Sparse::of_query(&Words::default(), text))
}

async fn find(index: &dyn Index, collection: &Collection, by: By) -> Vec<Found> {
    index.search(collection, Query { by, limit: 10, filter: BTreeMap::new() }).await.unwrap()
}

fn ids(found: &[Found]) -> Vec<String> {
    found.iter().map(|found| format!("{}/{}", found.passage.document_id, found.passage.chunk)).collect()
}

async fn the_first_maker_of_a_collection_decides_its_schema(index: &dyn Index, c: &Collection) {
    assert_eq!(index.schema(c).await.unwrap(), None);
    assert_eq!(index.create(c, &schema()).await.unwrap(), schema());
    let other = Schema { embedding_digest: "sha256:b".into(), dimensions: 8 };
    assert_eq!(index.create(c, &other).await.unwrap(), schema());
    assert_eq!(index.schema(c).await.unwrap(), Some(schema()));
    assert_eq!(index.counts(c).await.unwrap(), Counts { documents: 0, chunks: 0 });
}

async fn a_collection_that_does_not_exist_is_not_found(index: &dyn Index, c: &Collection) {
    use crate::error::Error::CollectionNotFound;
    let query = Query { by: by_axis(0), limit: 1, filter: BTreeMap::new() };
    assert!(matches!(index.search(c, query).await, Err(CollectionNotFound(_))));
    assert!(matches!(index.counts(c).await, Err(CollectionNotFound(_))));
    assert!(matches!(index.delete(c, "a").await, Err(CollectionNotFound(_))));
    assert!(matches!(index.replace(c, vec![document("a", "1", 0, &["x"])]).await, Err(CollectionNotFound(_))));
}

async fn what_was_stored_is_found_as_it_was(index: &dyn Index, c: &Collection) {
    let document = document("a", "1", 0, &["boundary layer", "shock wave"]);
    let passages: Vec<Passage> = document.points.iter().map(|point| point.passage.clone()).collect();
    assert_eq!(stored(index, c, vec![document]).await, [Holding::Nothing]);
    let found = find(index, c, by_words("boundary")).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].passage, passages[0]);
    assert_eq!(index.passage(c, &passages[1]).await.unwrap(), Some(passages[1].clone()));
    assert_eq!(index.counts(c).await.unwrap(), Counts { documents: 1, chunks: 2 });
}

async fn storing_the_same_again_changes_nothing(index: &dyn Index, c: &Collection) {
    let same = || document("a", "1", 0, &["one", "two"]);
    stored(index, c, vec![same()]).await;
    assert_eq!(
        stored(index, c, vec![same(), same()]).await,
        [Holding::Same { chunks: 2 }, Holding::Same { chunks: 2 }]
    );
    let asked = [("a".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), "1".into())];
    let holdings = index.holdings(c, &asked).await.unwrap();
    assert_eq!(holdings, [Holding::Same { chunks: 2 }, Holding::Other, Holding::Nothing]);
    assert_eq!(index.counts(c).await.unwrap(), Counts { documents: 1, chunks: 2 });
}

async fn another_revision_takes_the_place_of_the_one_before(index: &dyn Index, c: &Collection) {
    stored(
        index,
        c,
        vec![document("a", "1", 0, &["old one", "old two", "old three"]), document("b", "1", 1, &["old"])],
    )
    .await;
    assert_eq!(stored(index, c, vec![document("a", "2", 0, &["new"])]).await, [Holding::Other]);
    assert_eq!(ids(&find(index, c, by_words("old")).await), ["b/0"]);
    assert_eq!(ids(&find(index, c, by_words("new")).await), ["a/0"]);
    assert_eq!(index.counts(c).await.unwrap(), Counts { documents: 2, chunks: 2 });
}

async fn half_a_document_is_not_taken_for_the_whole(index: &dyn Index, c: &Collection) {
    let mut half = document("a", "1", 0, &["one", "two"]);
    half.points.pop();
    stored(index, c, vec![half]).await;
    let asked = [("a".to_owned(), "1".to_owned())];
    assert_eq!(index.holdings(c, &asked).await.unwrap(), [Holding::Other]);
    assert_eq!(stored(index, c, vec![document("a", "1", 0, &["one", "two"])]).await, [Holding::Other]);
    assert_eq!(index.holdings(c, &asked).await.unwrap(), [Holding::Same { chunks: 2 }]);
}

async fn a_search_during_a_replacement_finds_one_or_the_other(index: &dyn Index, c: &Collection) {
    stored(index, c, vec![document("a", "0", 0, &["target"])]).await;
    let replacing = async {
        for revision in 1..12 {
            stored(index, c, vec![document("a", &revision.to_string(), 0, &["target"])]).await;
        }
    };
    let searching = async {
        for _ in 0..60 {
            assert!(!find(index, c, by_words("target")).await.is_empty(), "the document was gone");
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(replacing, searching);
    assert_eq!(find(index, c, by_words("target")).await.len(), 1);
}

async fn two_replacements_at_once_leave_one_of_them_whole(index: &dyn Index, c: &Collection) {
    stored(index, c, vec![document("a", "0", 0, &["target"])]).await;
    for round in 0..10 {
        let replacing = ["x", "y"].map(|writer| {
            let document = document("a", &format!("{writer}{round}"), 0, &["target one", "target two"]);
            stored(index, c, vec![document])
        });
        futures::future::join_all(replacing).await;
        let found = find(index, c, by_words("target")).await;
        let of =
            |writer: &str| found.iter().filter(|found| found.passage.revision == format!("{writer}{round}")).count();
        assert!(of("x") == 2 || of("y") == 2, "neither is whole: {found:?}");
    }
    stored(index, c, vec![document("a", "last", 0, &["target"])]).await;
    assert_eq!(find(index, c, by_words("target")).await.len(), 1, "the next one repairs what was left");
}

async fn deleting_takes_one_document_and_says_how_much(index: &dyn Index, c: &Collection) {
    stored(index, c, vec![document("a", "1", 0, &["one", "two"]), document("b", "1", 1, &["one"])]).await;
    assert_eq!(index.delete(c, "a").await.unwrap(), 2);
    assert_eq!(index.delete(c, "a").await.unwrap(), 0);
    assert_eq!(ids(&find(index, c, by_words("one")).await), ["b/0"]);
    assert_eq!(stored(index, c, vec![document("a", "1", 0, &["one", "two"])]).await, [Holding::Nothing]);
}

async fn dense_ranks_by_cosine(index: &dyn Index, c: &Collection) {
    stored(index, c, vec![document("x", "1", 0, &["one", "two"]), document("y", "1", 1, &["three"])]).await;
    let found = find(index, c, by_axis(0)).await;
    assert_eq!(ids(&found), ["x/0", "x/1", "y/0"]);
    let expected = 1.0 / (1.0f32 + 3.0 * 0.01).sqrt();
    assert!((found[0].score - expected).abs() < 1e-4, "{} is not the cosine {expected}", found[0].score);
}

async fn sparse_ranks_by_rare_words_and_leaves_out_what_has_none(index: &dyn Index, c: &Collection) {
    let texts = ["common rare", "common usual", "common usual", "different"];
    let documents = texts.iter().enumerate().map(|(i, text)| document(&format!("d{i}"), "1", 0, &[text])).collect();
    stored(index, c, documents).await;
    let found = find(index, c, by_words("common rare")).await;
    assert_eq!(ids(&found), ["d0/0", "d1/0", "d2/0"]);
    // ln(1 + (N − n + ½)/(n + ½)) of each word, times its weight in the passage.
    let idf = |n: f32| (1.0 + (4.0 - n + 0.5) / (n + 0.5)).ln();
    let weight = Sparse::of_passage(&Words::default(), texts[0]).values[0];
    let expected = weight * (idf(3.0) + idf(1.0));
    assert!((found[0].score - expected).abs() < 1e-3, "{} is not BM25's {expected}", found[0].score);
}

async fn fusion_adds_reciprocal_ranks_from_one(index: &dyn Index, c: &Collection) {
    let documents = vec![
        document("near", "1", 0, &["nothing"]),
        document("both", "1", 1, &["target target"]),
        document("word", "1", 2, &["target and many other words beside it"]),
    ];
    stored(index, c, documents).await;
    let By::Sparse(sparse) = by_words("target") else { unreachable!() };
    let found = find(index, c, By::Both(vec![1.0, 0.9, 0.0, 0.0], sparse)).await;
    assert_eq!(ids(&found)[0], "both/0");
    let expected = 1.0 / 62.0 + 1.0 / 61.0;
    assert!((found[0].score - expected).abs() < 1e-6, "{} is not {expected}", found[0].score);
}

async fn a_filter_is_exact_and_needs_all(index: &dyn Index, c: &Collection) {
    stored(index, c, vec![document("a", "1", 0, &["one"]), document("ab", "1", 0, &["one"])]).await;
    let with = async |filter: &[(&str, &str)]| {
        let filter = filter.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ids(&index.search(c, Query { by: by_words("one"), limit: 10, filter }).await.unwrap())
    };
    assert_eq!(with(&[("source", "a")]).await, ["a/0"]);
    assert_eq!(with(&[("source", "a"), ("kind", "x=\"y\"")]).await, ["a/0"]);
    assert_eq!(with(&[("source", "a"), ("kind", "other")]).await, Vec::<String>::new());
    assert_eq!(with(&[("Source", "a")]).await, Vec::<String>::new());
}

async fn settling_loses_nothing(index: &dyn Index, c: &Collection) {
    let many = |revision: &str| {
        let documents = (0..1200).map(|i| document(&format!("d{i:04}"), revision, i % 4, &["some text", "more text"]));
        documents.collect::<Vec<_>>()
    };
    stored(index, c, many("1")).await;
    stored(index, c, many("2")).await;
    for i in 0..600 {
        index.delete(c, &format!("d{i:04}")).await.unwrap();
    }
    index.settle(c).await.unwrap();
    assert_eq!(index.counts(c).await.unwrap(), Counts { documents: 600, chunks: 1200 });
    assert_eq!(find(index, c, by_axis(0)).await.len(), 10);
    assert_eq!(stored(index, c, vec![document("late", "1", 0, &["straggler"])]).await, [Holding::Nothing]);
    assert_eq!(ids(&find(index, c, by_words("straggler")).await), ["late/0"]);
}
