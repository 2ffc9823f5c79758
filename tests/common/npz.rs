//! Reads NumPy's `.npz`: a zip archive of `.npy` files, stored or deflated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use hotset::npy::Npy;

/// All arrays of an archive by name, without the `.npy` of the member.
pub fn read(path: &Path) -> BTreeMap<String, Npy> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut archive = zip::ZipArchive::new(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut arrays = BTreeMap::new();
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).unwrap();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        let name = member.name().unwrap().trim_end_matches(".npy").to_owned();
        let array = Npy::parse(&path.join(&name), &bytes).unwrap();
        arrays.insert(name, array);
    }
    arrays
}
