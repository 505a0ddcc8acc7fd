//! The two murmur hashes: 32-bit murmur2 as Java Kafka clients place keys, 64-bit for de-duplication.
//!
//! Both are written to disk or decide placement, so they never change.

const fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// murmur2 as `org.apache.kafka.common.utils.Utils.murmur2`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the hash is defined on wrapping 32 bits"
)]
pub(super) fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut at = 0;
    while at + 4 <= data.len() {
        let mut k = word(data, at).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
        at += 4;
    }
    let tail = &data[at..];
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    (h ^ (h >> 15)) as i32
}

/// The partition Java clients (and every murmur2 partitioner) give a tenant's records: `(murmur2 & 0x7fffffff) % n`.
/// With no partitions (`partitions < 1`) it is 0.
pub fn tenant_partition(tenant: &str, partitions: i32) -> i32 {
    if partitions < 1 { 0 } else { (murmur2(tenant.as_bytes()) & 0x7fff_ffff) % partitions }
}

/// MurmurHash64A, seed 0: fast, stable across releases and machines.
pub(super) fn murmur64(data: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut h: u64 = (data.len() as u64).wrapping_mul(M);
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let mut bytes = [0_u8; 8];
        bytes.copy_from_slice(chunk);
        let mut k = u64::from_le_bytes(bytes).wrapping_mul(M);
        k ^= k >> 47;
        h = (h ^ k.wrapping_mul(M)).wrapping_mul(M);
    }
    let tail = chunks.remainder();
    if !tail.is_empty() {
        let mut bytes = [0_u8; 8];
        bytes[..tail.len()].copy_from_slice(tail);
        h = (h ^ u64::from_le_bytes(bytes)).wrapping_mul(M);
    }
    h ^= h >> 47;
    h = h.wrapping_mul(M);
    h ^ (h >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_the_java_client() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }

    #[test]
    fn a_tenant_has_one_partition_and_it_is_in_range() {
        assert_eq!(tenant_partition("abc", 10), 7);
        assert_eq!(tenant_partition("21", 7), (-973_932_308 & 0x7fff_ffff) % 7);
        assert_eq!(tenant_partition("abc", 0), 0, "no partitions: no panic");
    }

    #[test]
    fn murmur64_is_the_published_function() {
        assert_eq!(murmur64(b""), 0);
        assert_ne!(murmur64(b"a"), murmur64(b"a\0"), "length counts");
        assert_ne!(murmur64(b"12345678"), murmur64(b"12345679"));
    }
}
