use super::*;

const OF: Of = (1, 70);

fn bytes(records: &[(Id, u64)]) -> Vec<u8> {
    records.iter().flat_map(|(id, length)| record(*id, *length)).collect()
}

fn look(client: u8, called: u64, home: Option<u64>) -> Look {
    Look { client, called, newest: home.unwrap_or(1), home, outlives_home: true }
}

/// Client 1's writer has written two records, of which an fsync has covered the first, and client 2's one behind them.
fn three() -> Appended {
    let mut all = Appended::default();
    all.begin(OF, 0);
    all.issue(OF, (1, 1), (1, 32, 0));
    all.answered(OF, (1, 1), 0);
    all.synced(OF, &[(1, 1)]);
    all.issue(OF, (1, 2), (1, 200, 0));
    all.answered(OF, (1, 2), 32);
    all.issue(OF, (2, 1), (2, 1_000, 0));
    all.answered(OF, (2, 1), 232);
    all
}

/// What is wrong with a look at these records, whatever may happen.
fn seen(all: &mut Appended, look: &Look, records: &[(Id, u64)]) -> Vec<String> {
    let shown = parse(&bytes(records)).unwrap();
    all.look(OF, look, &shown, |from, to| from == to)
}

const WHOLE: [(Id, u64); 3] = [((1, 1), 32), ((1, 2), 200), ((2, 1), 1_000)];

#[test]
fn records_are_told_from_what_is_torn() {
    let whole = bytes(&WHOLE);
    let shown = parse(&whole).unwrap();
    assert_eq!(shown.iter().map(|shown| shown.at).collect::<Vec<_>>(), [0, 32, 232]);
    assert_eq!(parse(&[]), Ok(Vec::new()));
    for cut in [1, 31, 33, 231, 240, whole.len() - 1] {
        assert!(parse(&whole[..cut]).is_err(), "cut at {cut}");
    }
    for at in [0, 8, 16, 24, 40, 200, 500] {
        let mut torn = whole.clone();
        torn[at] ^= 1;
        assert!(parse(&torn).is_err(), "changed at {at}");
    }
    // A hole.
    assert!(parse(&[&whole[..32], &[0; 64][..], &whole[32..]].concat()).is_err());
    assert!(parse(&[0; 64]).is_err());
}

#[test]
fn all_that_was_answered_is_seen_at_home() {
    let mut all = three();
    let none: [String; 0] = [];
    let later = all.tick();
    assert_eq!(seen(&mut all, &look(1, later, Some(1)), &WHOLE), none);
    all.judge(|_| 0, 0).unwrap();
    // Elsewhere any state of before will do, for who has seen no more.
    assert_eq!(seen(&mut all, &look(3, later, None), &WHOLE[..1]), none);
    assert_eq!(seen(&mut all, &look(3, 0, Some(1)), &[]), none, "it was begun before");
    all.judge(|_| 0, 0).unwrap();
    // What no fsync covered may be lost with its writer's lease alone.
    assert_eq!(seen(&mut all, &look(4, later, Some(1)), &WHOLE[..2]), none);
    assert!(all.judge(|_| 0, 0).is_err());
    all.judge(|client| u64::from(client == 2), 0).unwrap();
    all.judge(|_| 0, 1).unwrap();
    // And what one covered never.
    assert_eq!(seen(&mut all, &look(4, later, Some(1)), &[]).len(), 1);
    let lost = Look { outlives_home: false, ..look(4, later, Some(2)) };
    assert_eq!(seen(&mut all, &lost, &[]), none, "in a `region` volume it may, with its home");
}

#[test]
fn nobody_misses_what_he_saw() {
    let mut all = three();
    let begun = all.tick();
    seen(&mut all, &look(2, begun, None), &WHOLE);
    let later = all.tick();
    let wrong = seen(&mut all, &look(2, later, None), &WHOLE[..1]);
    assert_eq!(wrong.len(), 1, "record 2 of client 1: {wrong:?}");
    assert!(all.judge(|_| 0, 0).is_err(), "its own may be lost with its lease");
    all.judge(|client| u64::from(client == 2), 0).unwrap();
    let after = Look { newest: 2, outlives_home: false, ..look(2, later, None) };
    assert!(seen(&mut all, &after, &[]).is_empty(), "a failover took it back");
}

#[test]
fn retries_appended_twice_and_records_out_of_order_are_caught() {
    let none: [String; 0] = [];
    let again = |records: &[(Id, u64)]| seen(&mut three(), &look(3, 0, None), records);
    assert_eq!(again(&WHOLE), none);
    assert_eq!(again(&[WHOLE[0], WHOLE[1], WHOLE[2], WHOLE[2]]).len(), 1, "twice");
    assert_eq!(again(&[WHOLE[0], WHOLE[2], ((2, 2), 32)]).len(), 1, "nobody wrote that");
    assert_eq!(again(&[WHOLE[0], ((1, 2), 208)]).len(), 1, "it is longer");
    // Behind the second one the first isn't where it was told that it is, either.
    assert_eq!(again(&[WHOLE[1], WHOLE[0]]).len(), 2);
}

#[test]
fn what_is_durable_lies_in_its_order() {
    let mut all = three();
    all.synced(OF, &[(1, 2), (2, 1)]);
    all.judge(|_| 0, 0).unwrap();
    let mut over = three();
    over.issue(OF, (2, 2), (2, 32, 0));
    over.answered(OF, (2, 2), 16);
    over.synced(OF, &[(2, 2)]);
    assert!(over.judge(|_| 0, 0).is_err(), "one lies over another");
    let mut before = three();
    before.synced(OF, &[(1, 2), (2, 1)]);
    before.issue(OF, (1, 3), (1, 32, 0));
    before.issue(OF, (2, 2), (2, 32, 0));
    before.answered(OF, (1, 3), 1_264);
    before.answered(OF, (2, 2), 1_232);
    before.synced(OF, &[(1, 3), (2, 2)]);
    before.judge(|_| 0, 0).unwrap();
    before.issue(OF, (1, 4), (1, 32, 0));
    before.answered(OF, (1, 4), 1_328);
    before.issue(OF, (2, 3), (2, 32, 0));
    before.answered(OF, (2, 3), 1_296);
    before.synced(OF, &[(1, 4), (2, 3)]);
    assert!(before.judge(|_| 0, 0).is_err(), "it was begun after the one behind it was answered");
}
