//! Snapshot files that are something else, damaged, or read in an unlucky way.

use super::*;

#[test]
fn what_is_no_snapshot_is_told_from_one_that_is_damaged_or_cut_short() {
    let whole = snapshot_of(&Log::new().machine);
    let outcome = |bytes: &[u8]| snapshot::read(&mut &*bytes).map(drop).map_err(|error| error.to_string());
    assert_eq!(outcome(&whole), Ok(()));
    let mut foreign = whole.clone();
    foreign[0] ^= 1;
    assert_eq!(outcome(&foreign).unwrap_err(), snapshot::SnapshotError::Foreign.to_string());
    assert_eq!(outcome(&[]).unwrap_err(), snapshot::SnapshotError::Foreign.to_string());
    for cut in [whole.len() - 1, whole.len() / 2, 13, 17] {
        assert!(outcome(&whole[..cut]).unwrap_err().contains("cut short"), "{cut}");
    }
    assert!(outcome(&[&whole[..], b"x"].concat()).unwrap_err().contains("follows its end"));
    // Whoever goes on after a failure learns no more than that.
    let mut parser = snapshot::Parser::new();
    parser.push(&foreign).unwrap_err();
    assert!(parser.push(&whole).is_err());
    assert!(parser.finish().unwrap_err().to_string().contains("not valid"));
}

#[test]
fn a_read_that_is_interrupted_is_tried_again() {
    struct Interrupted<'a>(&'a [u8], bool);
    impl std::io::Read for Interrupted<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::take(&mut self.1) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            self.1 = true;
            self.0.read(into)
        }
    }
    let machine = Log::new().machine;
    let file = snapshot_of(&machine);
    let loaded = snapshot::read(&mut Interrupted(&file, true)).unwrap();
    assert_eq!(loaded.machine.digest(), machine.digest());
}
