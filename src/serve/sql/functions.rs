//! Functions that Postgres clients call and DataFusion lacks.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Signature, SimpleScalarUDF, TypeSignature, Volatility};
use datafusion::prelude::{SessionContext, create_udf};
use datafusion::scalar::ScalarValue;

use super::settings::Settings;

/// How an unknown setting is told; by it, its code is known again.
pub(super) const UNKNOWN_SETTING: &str = "unrecognized configuration parameter ";

/// Adds them to a session of `user`.
pub(super) fn install(context: &SessionContext, user: &str, settings: Arc<Settings>) {
    let version = format!("PostgreSQL {} (runwarden {})", super::SERVER_VERSION, crate::metrics::VERSION);
    context.register_udf(constant("version", ScalarValue::Utf8(Some(version))));
    context.register_udf(constant("session_user", ScalarValue::Utf8(Some(user.to_owned()))));
    context.register_udf(constant("pg_is_in_recovery", ScalarValue::Boolean(Some(false))));
    context.register_udf(current_setting(settings));
    context.register_udf(size());
    let (number, text, flag) = (DataType::Int64, DataType::Utf8, DataType::Boolean);
    let id = std::slice::from_ref(&number);
    let owner = ScalarValue::Utf8(Some(super::DATABASE.to_owned()));
    context.register_udf(same("pg_get_userbyid", &[id], owner));
    // everything is on the search path, and no table has a size of its own
    for name in ["pg_function_is_visible", "pg_type_is_visible"] {
        context.register_udf(same(name, &[id], ScalarValue::Boolean(Some(true))));
    }
    for name in ["pg_table_size", "pg_indexes_size"] {
        context.register_udf(same(name, &[id], ScalarValue::Int64(Some(0))));
    }
    // nothing here has a comment or a definition that could be shown
    let nothing = ScalarValue::Utf8(None);
    let (named, numbered, pretty) = ([number.clone(), text], [number.clone(), number.clone()], [number.clone(), flag]);
    context.register_udf(same("obj_description", &[id, &named], nothing.clone()));
    context.register_udf(same("shobj_description", &[&named], nothing.clone()));
    context.register_udf(same("col_description", &[&numbered], nothing.clone()));
    context.register_udf(same("pg_get_viewdef", &[id, &pretty], nothing.clone()));
    context.register_udf(same("pg_get_indexdef", &[id], nothing));
}

/// A function without arguments.
fn constant(name: &str, value: ScalarValue) -> ScalarUDF {
    let data_type = value.data_type();
    create_udf(name, vec![], data_type, Volatility::Stable, Arc::new(move |_| Ok(ColumnarValue::Scalar(value.clone()))))
}

/// A function that answers the same whatever it is asked.
fn same(name: &str, takes: &[&[DataType]], value: ScalarValue) -> ScalarUDF {
    let takes =
        takes.iter().map(|types| TypeSignature::Coercible(types.iter().cloned().map(coercible).collect())).collect();
    let (signature, data_type) = (Signature::one_of(takes, Volatility::Stable), value.data_type());
    let answer = Arc::new(move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(value.clone())));
    SimpleScalarUDF::new_with_signature(name, signature, data_type, answer).into()
}

fn coercible(data_type: DataType) -> datafusion::logical_expr::Coercion {
    use datafusion::common::types::{logical_boolean, logical_int64, logical_string};
    use datafusion::logical_expr::{Coercion, TypeSignatureClass};
    match data_type {
        DataType::Boolean => Coercion::new_exact(TypeSignatureClass::Native(logical_boolean())),
        DataType::Utf8 => Coercion::new_exact(TypeSignatureClass::Native(logical_string())),
        _ => Coercion::new_implicit(
            TypeSignatureClass::Native(logical_int64()),
            vec![TypeSignatureClass::Integer],
            datafusion::common::types::NativeType::Int64,
        ),
    }
}

/// `current_setting(name)`, `current_setting(name, missing_ok)`.
fn current_setting(settings: Arc<Settings>) -> ScalarUDF {
    let name = DataType::Utf8;
    let takes = vec![TypeSignature::Exact(vec![name.clone()]), TypeSignature::Exact(vec![name, DataType::Boolean])];
    let answer = move |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let missing_ok = matches!(args.get(1), Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))));
        let look = |name: Option<&str>| match name.map(|name| (name, settings.get(name))) {
            None => Ok(None),
            Some((_, Some(value))) => Ok(Some(value)),
            Some((_, None)) if missing_ok => Ok(None),
            Some((name, None)) => Err(DataFusionError::Execution(format!("{UNKNOWN_SETTING}\"{name}\""))),
        };
        match args.first() {
            Some(ColumnarValue::Scalar(name)) => {
                let name = name.try_as_str().flatten();
                Ok(ColumnarValue::Scalar(ScalarValue::Utf8(look(name)?)))
            }
            Some(ColumnarValue::Array(names)) => {
                let names = cast(names, &DataType::Utf8)?;
                let values = names.as_string::<i32>().iter().map(look).collect::<Result<Vec<_>>>()?;
                Ok(ColumnarValue::Array(Arc::new(datafusion::arrow::array::StringArray::from(values))))
            }
            None => Err(DataFusionError::Execution("current_setting needs a name".to_owned())),
        }
    };
    let signature = Signature::one_of(takes, Volatility::Stable);
    SimpleScalarUDF::new_with_signature("current_setting", signature, DataType::Utf8, Arc::new(answer)).into()
}

/// `pg_size_pretty(bytes)`.
fn size() -> ScalarUDF {
    let answer = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let args = ColumnarValue::values_to_arrays(args)?;
        let sizes = args.iter().map(|sizes| cast(sizes, &DataType::Int64)).next().transpose()?;
        let Some(sizes) = sizes else {
            return Err(DataFusionError::Execution("pg_size_pretty needs a size".to_owned()));
        };
        let text = |bytes: i64| match bytes.unsigned_abs() {
            0..10_240 => format!("{bytes} bytes"),
            10_240..10_485_760 => format!("{} kB", bytes / 1024),
            _ => format!("{} MB", bytes / 1_048_576),
        };
        let texts: Vec<_> = sizes.as_primitive::<Int64Type>().iter().map(|bytes| bytes.map(text)).collect();
        debug_assert_eq!(texts.len(), sizes.len());
        Ok(ColumnarValue::Array(Arc::new(datafusion::arrow::array::StringArray::from(texts))))
    };
    create_udf("pg_size_pretty", vec![DataType::Int64], DataType::Utf8, Volatility::Immutable, Arc::new(answer))
}
