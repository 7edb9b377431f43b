#[test]
fn pending() {}
