//! throwaway
use hotset::{gguf::Gguf, session::*};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut o = Options { n_ctx: Some(1000), ..Options::default() };
    if a.len() > 2 { o.memory_bytes = Some(a[2].parse().unwrap()); }
    if a.len() > 3 { o.threads = Some(a[3].parse().unwrap()); }
    let mut s = Session::open(Gguf::open(std::path::Path::new(&a[1])).unwrap(), &o, &mut |_, _| {}).unwrap();
    let nv = s.config().n_vocab as u32;
    let toks: Vec<u32> = (0..128u32).map(|i| (i * 7919 + 13) % nv.min(8000)).collect();
    for _ in 0..3 { s.reset(); let t = std::time::Instant::now(); s.feed(&toks, &mut |_| {}).unwrap(); println!("prompt {:.1} tok/s", 128.0 / t.elapsed().as_secs_f64()); }
    for _ in 0..3 { let t = std::time::Instant::now(); for i in 0..128u32 { s.decode((i * 104729 + 7) % nv.min(8000)).unwrap(); } println!("decode {:.1} tok/s", 128.0 / t.elapsed().as_secs_f64()); }
    println!("{} {:?} {:?}", s.backend(), s.stats(), s.plan());
}
