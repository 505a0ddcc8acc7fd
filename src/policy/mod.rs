//! shim
#![allow(missing_docs)]
mod amount;
pub use amount::Amount;
use std::collections::BTreeMap;
use std::sync::Arc;
use serde::{Serialize, Deserialize};
use crate::clock::Micros;
macro_rules! names { ($n:ident $($v:ident $t:literal),*) => {
 #[derive(Debug,Clone,Copy,PartialEq,Eq,PartialOrd,Ord,Hash,Serialize,Deserialize)] pub enum $n { $($v),* }
 impl $n { pub fn as_str(self)->&'static str { match self { $(Self::$v => $t),* } } pub fn parse(t:&str)->Option<Self>{ match t { $($t=>Some(Self::$v),)* _=>None } } }
}}
names!(Scope Run "RUN", Agent "AGENT", ApiKey "API_KEY", HumanActor "HUMAN_ACTOR", Task "TASK", Project "PROJECT", Provider "PROVIDER", Tenant "TENANT");
names!(Mode Block "BLOCK", Warn "WARN", Audit "AUDIT", Disabled "DISABLED");
names!(Enforcement Block "BLOCK", Reject "REJECT", Queue "QUEUE", Degrade "DEGRADE", Warn "WARN", Alert "ALERT");
names!(OnBreach Pause "PAUSE", Stop "STOP", Kill "KILL", None "none");
names!(Category Budget "BUDGET", Rate "RATE", Threshold "THRESHOLD");
names!(RuleType System "SYSTEM", Safety "SAFETY", Ethical "ETHICAL", Temporal "TEMPORAL");
#[derive(Debug,Clone,PartialEq,Serialize,Deserialize)] pub struct Contributor { pub policy_id: String, pub gave: Vec<String> }
#[derive(Debug,Clone,PartialEq,Serialize,Deserialize)] pub struct Alerts { pub channels: Vec<String>, pub max_alerts_per_run: u64, pub min_alert_interval_seconds: u64 }
#[derive(Debug,Clone,PartialEq,Serialize,Deserialize)] pub struct EffectiveLimit { pub metric:String, pub limit_id:String, pub limit_type:String, pub category:Category, pub policy_tenant:String, pub policy_id:String, pub policy_version:u32, pub snapshot_id:String, pub rule_type:RuleType, pub mode:Mode, pub enforcement:Enforcement, pub on_breach:OnBreach, pub max:Amount, pub near:Amount, pub near_at:Amount, pub contributors:Vec<Contributor>, pub cooldown_seconds:u64, pub fallback_model:Option<String>, pub alerts:Alerts }
impl EffectiveLimit { pub fn holds_back(&self)->bool{false} pub fn intervenes(&self)->bool{ self.mode==Mode::Block && self.on_breach!=OnBreach::None } }
#[derive(Debug,Clone,PartialEq)] pub struct Ambiguity;
#[derive(Debug,Default)] pub struct LimitSet { pub limits: Vec<EffectiveLimit>, pub ambiguous: Vec<Ambiguity> }
#[derive(Debug,Clone,Copy)] pub struct Who<'a> { pub tenant:&'a str, pub project:Option<&'a str>, pub agent:Option<&'a str>, pub api_key:Option<&'a str>, pub human:Option<&'a str>, pub provider:Option<&'a str> }
impl<'a> Who<'a> { pub fn of_group(_s:Scope, tenant:&'a str, _id:&'a str)->Self{ Who{tenant,project:None,agent:None,api_key:None,human:None,provider:None} } }
impl Scope { pub fn key_field(self)->&'static str { "run_id" } }
pub struct BoundTerms { pub run_start: Option<Arc<Snapshot>>, pub first_token: Option<Arc<Snapshot>>, pub each_step: Arc<Snapshot> }
impl BoundTerms { pub fn effective(&self,_w:&Who<'_>,_m:&dyn Fn(&str)->Option<Scope>,_at:Option<Micros>)->LimitSet{LimitSet::default()} }
#[derive(Debug)] pub struct Snapshot; 
impl Snapshot { pub fn id(&self)->&str{""} pub fn to_json(&self)->String{String::new()} pub fn from_json(_:&str)->Result<Self,String>{Ok(Self)} pub fn has_active_windows(&self)->bool{false} pub fn active_key(&self,_:Micros)->u64{0} pub fn holds(&self,_:&str,_:&str,_:u32,_:&str)->bool{true}
 pub fn effective(&self,_w:&Who<'_>,_s:Scope,_m:&dyn Fn(&str)->Option<Scope>,_at:Option<Micros>)->LimitSet{LimitSet::default()} 
 pub fn new(_:Vec<Policy>,_:Vec<(String,String)>,_:String,_:String)->Self{Self} }
#[derive(Debug,Clone)] pub struct Limit { pub id:String, pub metric:String, pub max:Amount, pub near:Amount, pub enforcement:Enforcement, pub on_breach:OnBreach }
#[derive(Debug,Clone)] pub struct Policy { pub id:String, pub limits:Vec<Limit>, pub enforcement_mode:Mode }
pub struct PolicySet; impl PolicySet { pub fn new(_:&[(String,String)])->Result<Self,Vec<Finding>>{Ok(Self)} pub fn policies(&self)->&[Policy]{&[]} }
#[derive(Debug,Clone,Copy,PartialEq,Eq)] pub enum Severity{Error,Warning,Note}
#[derive(Debug)] pub struct Finding{pub severity:Severity}
impl std::fmt::Display for Finding { fn fmt(&self,_:&mut std::fmt::Formatter<'_>)->std::fmt::Result{Ok(())} }
pub fn check(_:&PolicySet,_:&[(String,Scope,bool)],_:bool)->Vec<Finding>{ let _: BTreeMap<u8,u8>; vec![] }
impl Amount { pub fn from_f64(v:f64)->Option<Self>{ if !v.is_finite(){return None} format!("{v:.9}").parse().ok() } pub fn ratio(self,max:Self)->Option<Self>{ if max.0==0 {None} else {Self::from_f64(self.to_f64()/max.to_f64())} } pub fn over(self,max:Self)->Option<Self>{ (self>max).then(||Self(self.0-max.0)) } }
