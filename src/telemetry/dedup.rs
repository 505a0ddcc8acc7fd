//! shim
use crate::clock::Micros;
/// shim
#[derive(Debug)] pub struct Dedup;
#[allow(missing_docs)]
impl Dedup { pub fn new(_:Micros,_:usize)->Self{Self} pub fn seen(&mut self,_:&str,_:&str,_:Micros,_:Micros)->bool{false} pub fn take_changes(&mut self)->Vec<(Vec<u8>,Option<Vec<u8>>)>{vec![]} pub fn restore(&mut self,_:&[u8],_:&[u8])->Result<(),String>{Ok(())} pub fn mark_all_dirty(&mut self){} }
