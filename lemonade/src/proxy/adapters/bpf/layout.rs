//! Where the running kernel keeps fields of its structures, by its own type information (BTF).
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`.

use std::fs;

use super::Unavailable;

/// Where the kernel shows its types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// First two bytes, native endian.
const MAGIC: u16 = 0xeb9f;

/// Kinds of types whose entries are followed by more words.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// The types of the running kernel.
pub(super) struct Types {
    bytes: Vec<u8>,
    /// Where the strings begin.
    strings: usize,
    /// Where each type's entry begins, by id; the first is of id 1.
    entries: Vec<usize>,
}

impl Types {
    /// Reads them.
    ///
    /// # Errors
    /// The kernel shows none.
    pub(super) fn of_kernel() -> Result<Self, Unavailable> {
        let missing =
            |why: String| Unavailable { why, cure: "run a kernel with CONFIG_DEBUG_INFO_BTF".to_owned() };
        let bytes = fs::read(TYPES).map_err(|error| missing(format!("{TYPES}: {error}")))?;
        Self::parse(bytes).ok_or_else(|| missing(format!("{TYPES} is not as expected")))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let header = word(&bytes, 4)? as usize;
        let types = header + word(&bytes, 8)? as usize;
        let end = types + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        if magic != MAGIC {
            return None;
        }
        let (mut entries, mut at) = (Vec::new(), types);
        while at < end {
            entries.push(at);
            let info = word(&bytes, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            at += 12
                + match kind {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION | ENUM64 | DATASEC => 12 * count,
                    ENUM | FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Some(Self { bytes, strings, entries })
    }

    /// Bytes from the start of structure `name` to its field `path`, whose parts are divided by dots.
    ///
    /// # Errors
    /// This kernel has no such field.
    pub(super) fn offset(&self, name: &str, path: &str) -> Result<u32, Unavailable> {
        let structure = (1..=self.entries.len() as u32).find(|&id| {
            self.entry(id)
                .is_some_and(|(own, kind, count, _)| kind == STRUCT && count > 0 && own == name.as_bytes())
        });
        let found = structure.and_then(|mut id| {
            let mut bits = 0;
            for part in path.split('.') {
                let (at, kind) = self.member(id, part.as_bytes(), 0)?;
                bits += at;
                id = kind;
            }
            (bits % 8 == 0).then_some(bits / 8)
        });
        found.ok_or_else(|| Unavailable {
            why: format!("this kernel has no field {path} in struct {name}"),
            cure: "write relay = \"copy\"".to_owned(),
        })
    }

    /// Where a member is, in bits, and its type; members of members without a name count.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let (_, kind, count, at) = self.entry(id)?;
        if !matches!(kind, STRUCT | UNION) || depth > 8 {
            return None;
        }
        let bit_fields = word(&self.bytes, at + 4)? >> 31 == 1;
        (0..count).find_map(|index| {
            let own = at + 12 + 12 * index;
            let offset = word(&self.bytes, own + 8)?;
            // With bit-fields in the structure the upper byte is the width of the field.
            let (offset, width) = if bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            let of = word(&self.bytes, own + 4)?;
            match self.string(word(&self.bytes, own)?)? {
                found if found == name && width == 0 => Some((offset, of)),
                [] => self.member(of, name, depth + 1).map(|(inner, of)| (offset + inner, of)),
                _ => None,
            }
        })
    }

    /// Name, kind, number of members and place of a type.
    fn entry(&self, id: u32) -> Option<(&[u8], u32, usize, usize)> {
        let at = *self.entries.get((id as usize).checked_sub(1)?)?;
        let info = word(&self.bytes, at + 4)?;
        Some((self.string(word(&self.bytes, at)?)?, info >> 24 & 0x1f, info as usize & 0xffff, at))
    }

    fn string(&self, at: u32) -> Option<&[u8]> {
        self.bytes.get(self.strings + at as usize..)?.split(|byte| *byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_where_the_kernel_keeps_them() {
        let Ok(types) = Types::of_kernel() else { return eprintln!("skipped: this kernel shows no types") };
        // A list head is two pointers, whatever the kernel.
        assert_eq!(types.offset("list_head", "next").unwrap(), 0);
        assert_eq!(types.offset("list_head", "prev").unwrap(), 8);
        let own = types.offset("sock", "sk_backlog").unwrap();
        assert_eq!(types.offset("sock", "sk_backlog.rmem_alloc").unwrap(), own, "the first of its fields");
        assert!(types.offset("sock", "sk_no_such_field").is_err());
        assert!(types.offset("no_such_structure", "next").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for bytes in [&b""[..], b"\x9f\xeb", b"\x9f\xeb\x01\x00\xff\xff\xff\x00\x00\x00\x00\x00"] {
            assert!(Types::parse(bytes.to_vec()).is_none());
        }
    }
}
