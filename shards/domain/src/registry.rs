//! The modules of this build. A new one is a line in [`modules`].

use crate::module::AnyModule;
use crate::{accounts, tickets, webhooks};

/// Every module, without rows, in the order of their numbers.
pub fn modules() -> Vec<Box<dyn AnyModule>> {
    vec![
        Box::<tickets::State>::default(),
        Box::<accounts::State>::default(),
        Box::<webhooks::State>::default(),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::table::module_of;

    #[test]
    fn numbers_and_names_of_modules_and_tables_are_their_own() {
        let modules = modules();
        assert!(
            modules.is_sorted_by(|one, next| one.number() < next.number()),
            "numbers are ordered and unique"
        );
        let names: BTreeSet<_> = modules.iter().map(|module| module.name()).collect();
        assert_eq!(names.len(), modules.len());
        let mut tables = BTreeSet::new();
        for module in &modules {
            assert!(module.number() > 0, "0 is the state machine's own");
            assert!(!module.name().is_empty() && module.name().bytes().all(|b| b.is_ascii_lowercase()));
            module.tables(&mut |table| {
                assert_eq!(
                    module_of(table.id()),
                    module.number(),
                    "table {} is another module's",
                    table.id()
                );
                assert!(tables.insert(table.id()), "table {} is there twice", table.id());
            });
        }
    }
}
