//! The bindings of libibverbs against the header they were made from, as a C compiler sees it: each number that
//! `src/verbs/sys.rs` claims becomes an assertion in C.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use transfer_sys::verbs::sys;

/// What `sys.rs` says, read from its text.
#[derive(Default)]
struct Claims {
    /// Structures and unions with the word for them in C.
    types: BTreeMap<String, &'static str>,
    /// Of a type without a name in C: the type that holds it, and by which field.
    inside: BTreeMap<String, (String, String)>,
    sizes: BTreeMap<String, u64>,
    offsets: BTreeMap<(String, String), u64>,
    constants: BTreeMap<String, i64>,
}

impl Claims {
    fn read(text: &str) -> Self {
        let mut claims = Self::default();
        let mut current = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["pub", kind @ ("struct" | "union"), name, "{"] => {
                    current = name.to_owned();
                    claims.types.insert(name.to_owned(), if kind == "union" { "union" } else { "struct" });
                }
                ["pub", "const", name, _, "=", value] => {
                    let value = value.trim_end_matches(';').parse().unwrap();
                    claims.constants.insert(name.trim_end_matches(':').to_owned(), value);
                }
                ["pub", field, of] => {
                    let (field, of) = (field.trim_end_matches(':'), of.trim_end_matches(','));
                    if of.contains("__bindgen_ty_") {
                        claims.inside.insert(of.to_owned(), (current.clone(), field.to_owned()));
                    }
                }
                _ => {}
            }
        }
        // `["Offset of field: TYPE::FIELD"][... - 8usize];`, however it is broken into lines.
        for claim in text.split("[\"").skip(1) {
            let Some((what, rest)) = claim.split_once("\"]") else { continue };
            let number = rest.split("- ").nth(1).and_then(|rest| rest.split("usize").next());
            let number = || number.unwrap().trim().parse().unwrap();
            if let Some(name) = what.strip_prefix("Size of ") {
                claims.sizes.insert(name.to_owned(), number());
            } else if let Some(field) = what.strip_prefix("Offset of field: ") {
                let (name, field) = field.split_once("::").unwrap();
                claims.offsets.insert((name.to_owned(), field.to_owned()), number());
            }
        }
        claims
    }

    /// How C names a type: by its tag, or by the field that has it. `None` where that field has no name either.
    fn c_type(&self, name: &str) -> Option<String> {
        let Some((holder, field)) = self.inside.get(name) else {
            return Some(format!("{} {name}", self.types[name]));
        };
        let (holder, _) = self.named_holder(holder, 0);
        (!field.starts_with("__bindgen_anon")).then(|| format!("__typeof__((({holder} *)0)->{field})"))
    }

    /// The innermost type around `name` that C can name, and how far into it `offset` of `name` is.
    fn named_holder(&self, name: &str, offset: u64) -> (String, u64) {
        match self.c_type(name) {
            Some(c) => (c, offset),
            None => {
                let place = self.inside[name].clone();
                // Members of a union lie at its beginning, which bindgen does not say.
                let before = if self.types[&place.0] == "union" { 0 } else { offset_of_nameless(&place) };
                self.named_holder(&place.0, before + offset)
            }
        }
    }

    fn c_program(&self) -> String {
        let mut c = "#include <stddef.h>\n#include \"sys.h\"\n".to_owned();
        for (name, size) in &self.sizes {
            if let Some(of) = self.c_type(name) {
                writeln!(c, "_Static_assert(sizeof({of}) == {size}, \"size of {name}\");").unwrap();
            }
        }
        for ((name, field), offset) in &self.offsets {
            if field.starts_with("_bindgen_opaque") || field.starts_with("__bindgen_anon") {
                continue;
            }
            let field = field.trim_end_matches('_');
            let (of, at) = self.named_holder(name, *offset);
            writeln!(c, "_Static_assert(offsetof({of}, {field}) == {at}, \"{name}.{field}\");").unwrap();
        }
        for (name, value) in &self.constants {
            writeln!(c, "_Static_assert((long long){name} == {value}LL, \"{name}\");").unwrap();
        }
        c
    }
}

/// Where a member without a name lies, of which bindgen does not say it either.
fn offset_of_nameless((holder, field): &(String, String)) -> u64 {
    let offset = match (holder.as_str(), field.as_str()) {
        ("ibv_wc", "__bindgen_anon_1") => offset_of!(sys::ibv_wc, __bindgen_anon_1),
        ("ibv_send_wr", "__bindgen_anon_1") => offset_of!(sys::ibv_send_wr, __bindgen_anon_1),
        ("ibv_send_wr", "__bindgen_anon_2") => offset_of!(sys::ibv_send_wr, __bindgen_anon_2),
        _ => panic!("{holder}.{field} is new; add it here"),
    };
    offset as u64
}

/// Compiles `program`; what the compiler complains of.
fn complaints(program: &str) -> String {
    let verbs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verbs");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("claims.c");
    std::fs::write(&file, program).unwrap();
    let output = Command::new("cc").arg("-fsyntax-only").arg("-I").arg(verbs).arg(&file).output().unwrap();
    assert_eq!(output.status.success(), output.stderr.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "needs infiniband/verbs.h; run by ci/verbs-header"]
fn every_size_offset_and_constant_is_the_header_s() {
    let claims = Claims::read(include_str!("../src/verbs/sys.rs"));
    // Nothing is left out: each structure has a size, but for two that the header only declares, and for unions,
    // which lie in structures; and there is about as much as there should be.
    let structs = claims.types.iter().filter(|(_, kind)| **kind == "struct").map(|(name, _)| name.as_str());
    let sizeless: Vec<&str> = structs.filter(|name| !claims.sizes.contains_key(*name)).collect();
    assert_eq!(sizeless, ["_compat_ibv_port_attr", "verbs_ex_private"]);
    assert!(claims.sizes.len() > 60 && claims.offsets.len() > 300 && claims.constants.len() > 150);

    let program = claims.c_program();
    assert_eq!(complaints(&program), "");
    println!(
        "{} sizes, {} offsets and {} constants agree",
        claims.sizes.len(),
        claims.offsets.len(),
        claims.constants.len()
    );
}

#[test]
#[ignore = "needs infiniband/verbs.h; run by ci/verbs-header"]
fn a_number_that_is_wrong_is_noticed() {
    let claims = Claims::read(include_str!("../src/verbs/sys.rs"));
    let wrong = |change: fn(&mut Claims)| {
        let mut claims = Claims::read(include_str!("../src/verbs/sys.rs"));
        change(&mut claims);
        complaints(&claims.c_program())
    };
    assert!(claims.sizes["ibv_wc"] == 48, "what the rest of this test changes");
    assert!(wrong(|claims| *claims.sizes.get_mut("ibv_wc").unwrap() = 40).contains("size of ibv_wc"));
    let moved = wrong(|claims| {
        let place = ("ibv_send_wr__bindgen_ty_4__bindgen_ty_1".to_owned(), "rkey".to_owned());
        *claims.offsets.get_mut(&place).unwrap() += 4;
    });
    assert!(moved.contains("rkey"), "{moved}");
    let renumbered = wrong(|claims| *claims.constants.get_mut("IBV_WC_RETRY_EXC_ERR").unwrap() = 13);
    assert!(renumbered.contains("IBV_WC_RETRY_EXC_ERR"));
}
