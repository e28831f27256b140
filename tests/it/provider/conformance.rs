//! What every [`Provider`] must do, whatever is behind it.

use std::sync::Arc;

use bytes::Bytes;
use cairnfs::provider::{ErrorKind, ObjectPath, Provider, PutMode};
use futures::{StreamExt, TryStreamExt, future, stream};

/// What is known of the store behind a provider.
#[derive(Clone, Copy)]
pub struct Store {
    /// Of several writers with [`PutMode::IfAbsent`], one wins.
    decides_races: bool,
    /// Objects to list: more than a page, for stores that list by pages.
    listed_objects: usize,
}

impl Store {
    /// For stores that list by pages of at most 1000.
    pub const PAGED: Self = Self { decides_races: true, listed_objects: 1010 };
    /// For stores without pages.
    pub const SMALL: Self = Self { decides_races: true, listed_objects: 30 };
    /// For stores that ignore conditions.
    pub const CONDITION_BLIND: Self = Self { decides_races: false, listed_objects: 30 };
}

/// Panics unless `provider`, which must be empty, does what the trait promises.
pub async fn conforms(provider: Arc<dyn Provider>, store: Store) {
    let provider = provider.as_ref();
    an_empty_store_is_empty(provider).await;
    bodies_come_back_as_they_were(provider).await;
    an_existing_object_stays_unless_overwritten(provider).await;
    ranges_are_exact_or_errors(provider).await;
    absent_is_told_from_present(provider).await;
    listings_are_complete_and_sorted(provider, store.listed_objects).await;
    if store.decides_races {
        one_of_many_writers_wins(provider).await;
    }
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a usable name")
}

/// Bytes that differ everywhere, so that a wrong offset shows.
fn body(length: usize, seed: u64) -> Bytes {
    let word = |index: u64| (index ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..length.div_ceil(8) as u64).flat_map(word).take(length).collect()
}

async fn an_empty_store_is_empty(provider: &dyn Provider) {
    assert_eq!(provider.list("", None).await.expect("listed"), []);
    assert_eq!(provider.list("no/such/", None).await.expect("listed"), []);
}

async fn bodies_come_back_as_they_were(provider: &dyn Provider) {
    let objects = [
        ("empty", 0),
        ("one", 1),
        ("deep/er/and/deeper/object.bin", 70_001),
        ("with space and ünïcode/é.bin", 8191),
        ("large", 3 << 20),
    ];
    for (name, length) in objects {
        let (name, body) = (path(name), body(length, 1));
        provider.put(&name, body.clone(), PutMode::Overwrite).await.expect("stored");
        assert!(provider.get(&name, None).await.expect("there") == body, "{name} differs");
        let meta = provider.head(&name).await.expect("known").expect("present");
        assert_eq!(meta.size, length as u64, "{name}");
        provider.delete(&name).await.expect("removed");
    }
}

async fn an_existing_object_stays_unless_overwritten(provider: &dyn Provider) {
    let name = path("modes/object");
    let (first, second) = (body(1000, 1), body(900, 2));
    provider.put(&name, first.clone(), PutMode::IfAbsent).await.expect("nothing was there");
    let error = provider.put(&name, second.clone(), PutMode::IfAbsent).await.expect_err("something is there");
    assert_eq!((error.kind, error.retryable), (ErrorKind::AlreadyExists, false), "{error}");
    assert_eq!(provider.get(&name, None).await.expect("there"), first);
    provider.put(&name, second.clone(), PutMode::Overwrite).await.expect("replaced");
    assert_eq!(provider.get(&name, None).await.expect("there"), second);
    provider.delete(&name).await.expect("removed");
    provider.put(&name, first.clone(), PutMode::IfAbsent).await.expect("nothing is there any more");
    provider.delete(&name).await.expect("removed");
}

async fn ranges_are_exact_or_errors(provider: &dyn Provider) {
    let (name, body) = (path("ranges/object"), body(10_000, 3));
    provider.put(&name, body.clone(), PutMode::Overwrite).await.expect("stored");
    for (start, end) in [(0, 1), (0, 10_000), (17, 4242), (9_999, 10_000), (0, 0), (5000, 5000), (10_000, 10_000)] {
        let read = provider.get(&name, Some(start..end)).await;
        let read = read.unwrap_or_else(|error| panic!("{start}..{end}: {error}"));
        assert!(read == body.slice(start as usize..end as usize), "{start}..{end}");
    }
    for (start, end) in [(0, 10_001), (9_999, 20_000), (10_000, 10_001), (50_000, 50_010), (10_001, 10_001)] {
        let error = provider.get(&name, Some(start..end)).await.expect_err("not that long");
        assert_eq!(error.kind, ErrorKind::Corrupt, "{start}..{end}: {error}");
    }
    provider.delete(&name).await.expect("removed");
}

async fn absent_is_told_from_present(provider: &dyn Provider) {
    let (absent, present) = (path("presence/absent"), path("presence/present"));
    provider.put(&present, body(10, 4), PutMode::Overwrite).await.expect("stored");
    assert_eq!(provider.head(&absent).await.expect("known"), None);
    assert!(provider.head(&present).await.expect("known").is_some());
    assert_eq!(provider.head(&path("presence")).await.expect("known"), None, "what others are below is no object");
    for range in [None, Some(0..5), Some(0..0)] {
        let error = provider.get(&absent, range).await.expect_err("absent");
        assert_eq!((error.kind, error.retryable), (ErrorKind::NotFound, false), "{error}");
        assert!(error.to_string().contains("presence/absent"), "{error}");
    }
    provider.delete(&absent).await.expect("absent already");
    provider.delete(&path("no/such/folder/object")).await.expect("absent already");
    provider.delete(&present).await.expect("removed");
    assert_eq!(provider.head(&present).await.expect("known"), None);
}

async fn listings_are_complete_and_sorted(provider: &dyn Provider, count: usize) {
    let mut names: Vec<String> = (0..count).map(|number| format!("list/{number:05}")).collect();
    names.extend(
        ["list/deep/er/z", "list/deep/a", "list/deep.x", "list/deep-x", "list/Z", "listing/other"].map(str::to_owned),
    );
    let put = |name: &String| {
        let (name, length) = (path(name), name.len());
        async move { provider.put(&name, body(length, 5), PutMode::Overwrite).await }
    };
    stream::iter(&names).map(put).buffer_unordered(16).try_collect::<Vec<()>>().await.expect("stored");
    names.sort();
    let below = |prefix: &str, after: &str| -> Vec<(String, u64)> {
        let wanted = names.iter().filter(|name| name.starts_with(prefix) && name.as_str() > after);
        wanted.map(|name| (name.clone(), name.len() as u64)).collect()
    };
    let last = format!("list/{:05}", count - 1);
    for (prefix, after) in [
        ("", None),
        ("list/", None),
        ("list/deep/", None),
        ("lis/", None),
        ("list/", Some("list/00007")),
        ("list/", Some("list/00007/beyond")),
        ("list/", Some(last.as_str())),
        ("list/deep/", Some("list/deep/a")),
        ("", Some("list/deep/er/z")),
        ("list/", Some("zzz")),
    ] {
        let listed = provider.list(prefix, after).await.expect("listed");
        let listed: Vec<(String, u64)> = listed.into_iter().map(|entry| (entry.path.to_string(), entry.size)).collect();
        assert_eq!(listed, below(prefix, after.unwrap_or_default()), "below {prefix:?} after {after:?}");
    }
    let delete = |name: &String| {
        let name = path(name);
        async move { provider.delete(&name).await }
    };
    stream::iter(&names).map(delete).buffer_unordered(16).try_collect::<Vec<()>>().await.expect("removed");
    assert_eq!(provider.list("", None).await.expect("listed"), []);
}

async fn one_of_many_writers_wins(provider: &dyn Provider) {
    for round in 0..3 {
        let name = path(&format!("race/{round}"));
        let bodies: Vec<Bytes> = (0..8).map(|writer| body(500, writer)).collect();
        let puts = bodies.iter().map(|body| provider.put(&name, body.clone(), PutMode::IfAbsent));
        let results = future::join_all(puts).await;
        let winners: Vec<&Bytes> =
            results.iter().zip(&bodies).filter(|(result, _)| result.is_ok()).map(|(_, body)| body).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert_eq!(&provider.get(&name, None).await.expect("there"), winners[0]);
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
        }
        provider.delete(&name).await.expect("removed");
    }
}
