//! shim
use std::path::PathBuf;
#[allow(missing_docs)]
pub struct Line { pub file:u32, pub number:u64, pub time:Option<i64>, pub payload:Vec<u8> }
#[allow(missing_docs)]
pub struct Merged;
#[allow(missing_docs)]
impl Merged { pub fn open(_:&[PathBuf])->Result<Self,String>{Ok(Self)} pub fn total_bytes(&self)->u64{0} pub fn bytes_read(&self)->u64{0} pub fn names(&self)->&[String]{&[]} }
impl Iterator for Merged { type Item=Result<Line,String>; fn next(&mut self)->Option<Self::Item>{None} }
