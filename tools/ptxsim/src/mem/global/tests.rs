use super::*;

fn memory() -> GlobalMemory {
    GlobalMemory::new(1 << 30)
}

#[test]
fn what_is_written_is_read() {
    let m = memory();
    let a = m.alloc(1000).expect("memory");
    assert!(a >= FIRST_ADDRESS && a.is_multiple_of(512));
    m.write(a + 3, b"hello").expect("write");
    let mut back = [0; 7];
    m.read(a + 2, &mut back).expect("read");
    assert_eq!(&back, b"\0hello\0");
    assert_eq!(m.find(a + 999), Some(AllocInfo { base: a, bytes: 1000, kind: AllocKind::Device }));
    assert_eq!(m.find(a + 1000), None);
    assert_eq!(m.used_bytes(), 1000);
}

#[test]
fn the_card_is_finite() {
    let m = GlobalMemory::new(1000);
    m.alloc(600).expect("memory");
    assert_eq!(m.alloc(600), Err(MemError::OutOfMemory { requested: 600, free: 400 }));
    assert_eq!(m.alloc(u64::MAX), Err(MemError::OutOfMemory { requested: u64::MAX, free: 400 }));
    assert_eq!(m.alloc(0), Err(MemError::Empty));
}

#[test]
fn addresses_are_not_used_again() {
    let m = memory();
    let a = m.alloc(4096).expect("memory");
    assert_eq!(m.free(a + 8), Err(MemError::NotABase(a + 8)));
    m.free(a).expect("free");
    assert_eq!(m.used_bytes(), 0);
    let b = m.alloc(4096).expect("memory");
    assert!(b >= a + 4096 + GAP);
    assert!(m.freed(a + 100) && !m.freed(b) && !m.freed(a + 4096));
    let error = m.free(a).expect_err("freed twice").to_string();
    assert!(error.contains("freed"), "{error}");
}

#[test]
fn ranges_are_checked() {
    let m = memory();
    let a = m.alloc(100).expect("memory");
    assert_eq!(
        m.write(a + 90, &[0; 11]),
        Err(MemError::OutOfBounds { address: a + 90, bytes: 11, base: a, size: 100 })
    );
    m.write(a + 90, &[0; 10]).expect("to the end");
    m.read(a + 100, &mut []).expect("nothing at the end");
    assert!(m.read(a + 100, &mut [0]).is_err());
    assert!(m.copy(a, a + 1, 100).is_err());
}

#[test]
fn messages_tell_the_distance() {
    let m = memory();
    assert!(m.describe(1 << 45).contains("nothing is allocated"));
    let a = m.alloc(100).expect("memory");
    assert!(m.describe(a + 100).contains("right behind the allocation of 100 bytes"));
    assert!(m.describe(a + 104).contains("4 bytes behind the end"), "{}", m.describe(a + 104));
    assert!(m.describe(a - 1).contains("1 byte before the start"));
    assert!(m.describe(8).contains("null pointer"));
    m.free(a).expect("free");
    let text = m.describe(a + 4);
    assert!(text.contains("4 bytes into an allocation of 100 bytes") && text.contains("freed"), "{text}");
}

#[test]
fn patterns_fill() {
    let m = memory();
    let a = m.alloc(64).expect("memory");
    m.fill(a, &[1, 2, 3, 4], 3).expect("fill");
    m.fill(a + 12, &[9, 8], 2).expect("fill");
    m.fill(a + 16, &[7], 5).expect("fill");
    let mut back = [0; 21];
    m.read(a, &mut back).expect("read");
    assert_eq!(back, [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 9, 8, 9, 8, 7, 7, 7, 7, 7]);
    assert_eq!(m.fill(a, &[1, 2, 3], 1), Err(MemError::BadPattern(3, a)));
    assert_eq!(m.fill(a + 2, &[1, 2, 3, 4], 1), Err(MemError::BadPattern(4, a + 2)));
    assert!(m.fill(a, &[0; 4], u64::MAX).is_err());
}

#[test]
fn copies_keep_what_was_written() {
    let m = memory();
    let a = m.alloc(64).expect("memory");
    let b = m.alloc(64).expect("memory");
    m.write(a + 4, &[5; 8]).expect("write");
    m.copy(b + 1, a, 16).expect("copy");
    let mut back = [1; 16];
    m.read(b + 1, &mut back).expect("read");
    assert_eq!(back, [0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 0, 0, 0, 0]);
    let table = m.table();
    let init = table.get(1).expect("b").init().expect("device memory");
    let bits: Vec<u32> = (0..4).map(|w| init.word(w)).collect();
    assert_eq!(bits, [0, 0b1110, 15, 1]);
    m.copy(a + 2, a + 4, 8).expect("overlapping copy");
    let mut back = [0; 8];
    m.read(a + 2, &mut back).expect("read");
    assert_eq!(back, [5; 8]);
}

#[test]
fn host_memory_keeps_its_address() {
    let m = memory();
    let mut host = vec![3u8; 4096];
    let base = host.as_mut_ptr() as u64;
    m.register_host(host.as_mut_ptr(), 4096, AllocKind::Pinned).expect("register");
    assert_eq!(m.used_bytes(), 0);
    assert_eq!(m.register_host(host.as_mut_ptr(), 1, AllocKind::Pinned), Err(MemError::Overlap(base)));
    m.write(base + 1, &[9]).expect("write");
    assert!(m.table().get(0).expect("host memory").init().is_none());
    m.free(base).expect("unregister");
    assert!(m.freed(base));
    m.register_host(host.as_mut_ptr(), 4096, AllocKind::Managed).expect("register");
    assert!(!m.freed(base));
    assert_eq!(m.used_bytes(), 4096);
    m.free(base).expect("unregister");
    assert_eq!(host[..3], [3, 9, 3]);
}

#[test]
fn launches_are_numbered_and_shadows_forget() {
    let m = memory();
    let a = m.alloc(64).expect("memory");
    let table = m.table();
    let cell = &table.get(0).expect("a").shadow().writes()[0];
    cell.store(7, Ordering::Relaxed);
    let numbers: Vec<u64> = (0..EPOCHS).map(|_| m.begin_launch()).collect();
    assert_eq!((numbers[0], epoch(numbers[0]), epoch(numbers[254])), (1, 1, 255));
    assert_eq!(cell.load(Ordering::Relaxed), 7);
    assert_eq!(epoch(m.begin_launch()), 1);
    assert_eq!(cell.load(Ordering::Relaxed), 0);
    m.free(a).expect("free");
    // Whoever still holds the table may use the allocation.
    assert_eq!(cell.load(Ordering::Relaxed), 0);
}
