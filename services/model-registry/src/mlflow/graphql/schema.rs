//! The schema of `schema.graphql`, with resolvers: below the root, a field is read from the JSON of its parent.

use anyhow::{Context, bail};
use async_graphql::dynamic::{
    Enum, Field, FieldFuture, FieldValue, InputObject, InputValue, Object, Scalar, Schema, TypeRef,
};
use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{
    BaseType, FieldDefinition, InputValueDefinition, Type, TypeKind, TypeSystemDefinition,
};
use async_graphql::{Name, Value};
use serde_json::Value as Json;

use super::Root;

const SDL: &str = include_str!("schema.graphql");
/// How deep an executed query may go, fragments and introspection included.
const MAX_DEPTH: usize = 64;

/// Builds the schema; fails where its text is wrong.
pub(super) fn build() -> anyhow::Result<Schema> {
    let document = parse_schema(SDL).context("schema.graphql")?;
    let types = document.definitions.into_iter().map(|definition| match definition {
        TypeSystemDefinition::Type(definition) => Ok(definition.node),
        _ => bail!("schema.graphql has something that is not a type"),
    });
    let types = types.collect::<anyhow::Result<Vec<_>>>()?;
    let enums: Vec<Name> =
        types.iter().filter(|one| matches!(one.kind, TypeKind::Enum(_))).map(|one| one.name.node.clone()).collect();
    let mut schema = Schema::build("Query", Some("Mutation"), None).limit_recursive_depth(MAX_DEPTH);
    for definition in types {
        let name = definition.name.node.as_str();
        schema = match definition.kind {
            TypeKind::Scalar => schema.register(Scalar::new(name)),
            TypeKind::Enum(one) => {
                let add = |all: Enum, value: &Name| all.item(value.as_str());
                schema.register(one.values.iter().map(|value| &value.node.value.node).fold(Enum::new(name), add))
            }
            TypeKind::InputObject(object) => {
                let add = |object: InputObject, field: InputValue| object.field(field);
                schema
                    .register(object.fields.iter().map(|field| argument(&field.node)).fold(InputObject::new(name), add))
            }
            TypeKind::Object(object) => {
                let is_root = ["Query", "Mutation"].contains(&name);
                let mut built = Object::new(name);
                for field in &object.fields {
                    built = built.field(if is_root { root(&field.node)? } else { below(&field.node, &enums) });
                }
                schema.register(built)
            }
            TypeKind::Interface(_) | TypeKind::Union(_) => {
                bail!("schema.graphql: {name} is of a kind that is not built")
            }
        };
    }
    Ok(schema.finish()?)
}

fn reference(ty: &Type) -> TypeRef {
    let named = match &ty.base {
        BaseType::Named(name) => TypeRef::named(name.as_str()),
        BaseType::List(of) => TypeRef::List(Box::new(reference(of))),
    };
    if ty.nullable { named } else { TypeRef::NonNull(Box::new(named)) }
}

fn argument(definition: &InputValueDefinition) -> InputValue {
    InputValue::new(definition.name.node.as_str(), reference(&definition.ty.node))
}

/// A field of the root: a call.
fn root(definition: &FieldDefinition) -> anyhow::Result<Field> {
    let name = definition.name.node.as_str();
    let root = Root::named(name).with_context(|| format!("schema.graphql: {name} is not resolved"))?;
    let field = Field::new(name, reference(&definition.ty.node), move |context| {
        FieldFuture::new(async move {
            match root.resolve(&context).await {
                Ok(answer) => Ok(Some(FieldValue::owned_any(answer))),
                // The field is null and the error told; what was asked beside it is answered all the same.
                Err(error) => {
                    context.add_error(context.set_error_path(error.into_server_error(context.item.pos)));
                    Ok(None)
                }
            }
        })
    });
    Ok(definition.arguments.iter().fold(field, |field, one| field.argument(argument(&one.node))))
}

/// A field below the root.
fn below(definition: &FieldDefinition, enums: &[Name]) -> Field {
    let key = snake(definition.name.node.as_str());
    let ty = definition.ty.node.clone();
    let shape = Shape::of(&ty, enums);
    Field::new(definition.name.node.as_str(), reference(&ty), move |context| {
        let parent = context.parent_value.try_downcast_ref::<Json>();
        match parent {
            Ok(parent) => FieldFuture::Value(shape.show(parent.get(&key))),
            Err(error) => FieldFuture::new(async { Err::<Option<FieldValue<'_>>, _>(error) }),
        }
    })
}

/// `run_id` of `runId`.
pub(super) fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// How JSON becomes a value of a type.
enum Shape {
    Text,
    Long,
    Truth,
    Number,
    Word,
    Object,
    List(Box<Shape>),
}

impl Shape {
    fn of(ty: &Type, enums: &[Name]) -> Self {
        match &ty.base {
            BaseType::List(of) => Self::List(Box::new(Self::of(of, enums))),
            BaseType::Named(name) => match name.as_str() {
                "String" => Self::Text,
                "LongString" => Self::Long,
                "Boolean" => Self::Truth,
                "Float" | "Int" => Self::Number,
                _ if enums.contains(name) => Self::Word,
                _ => Self::Object,
            },
        }
    }

    /// What is missing is what it is in Protocol Buffers, to MLflow's clients: an empty text, 0, false, an empty list.
    fn show<'a>(&self, value: Option<&'a Json>) -> Option<FieldValue<'a>> {
        let value = value.filter(|value| !value.is_null());
        let shown = match (self, value) {
            (Self::List(of), Some(Json::Array(values))) => {
                return Some(FieldValue::list(values.iter().filter_map(|value| of.show(Some(value)))));
            }
            (Self::List(_), _) => Value::List(Vec::new()),
            (Self::Object, value) => return value.map(|value| FieldValue::borrowed_any(value)),
            (Self::Text | Self::Word, Some(Json::String(text))) => Value::String(text.clone()),
            (Self::Text | Self::Long, Some(value)) => Value::String(value.to_string()),
            (Self::Word, _) => return None,
            (Self::Text, None) => Value::String(String::new()),
            (Self::Long, None) => Value::String("0".to_owned()),
            (Self::Truth, value) => Value::Boolean(value.and_then(Json::as_bool).unwrap_or_default()),
            (Self::Number, None) => Value::from(0),
            // Not a number: JSON has no word for it, and a text is no number.
            (Self::Number, Some(value)) => Value::from(value.as_f64()?),
        };
        Some(FieldValue::value(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_whole() {
        let sdl = build().unwrap().sdl();
        for part in ["type MlflowRunExtension {", "mlflowSearchRuns(input: MlflowSearchRunsInput)", "scalar LongString"]
        {
            assert!(sdl.contains(part), "{part} is missing in:\n{sdl}");
        }
        assert_eq!(snake("lastUpdatedTimestamp"), "last_updated_timestamp");
    }
}
