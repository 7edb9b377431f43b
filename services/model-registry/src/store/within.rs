//! Rows of other tables that come within one row, whatever their number: SQLite sends them as one column, the text of a JSON
//! array of arrays, PostgreSQL as an array for each of their columns, which costs it a fraction of JSON or of records.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::value::{Error as NoSuchWord, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgValueFormat};
use sqlx::sqlite::SqliteRow;
use sqlx::{Error, Result, Row, ValueRef};

/// Reads the rows within a row of SQLite, one list after the other.
pub(super) struct JsonLists<'r> {
    row: &'r SqliteRow,
    at: usize,
}

impl<'r> JsonLists<'r> {
    pub(super) fn new(row: &'r SqliteRow) -> Self {
        Self { row, at: 0 }
    }

    pub(super) fn next<T: Deserialize<'r>>(&mut self) -> Result<Vec<T>> {
        let json: &str = self.row.try_get(self.at)?;
        self.at += 1;
        if json == "[]" {
            Ok(Vec::new())
        } else {
            serde_json::from_str(json).map_err(|error| Error::Decode(error.into()))
        }
    }
}

/// Reads the rows within a row of PostgreSQL, one list after the other.
pub(super) struct ArrayLists<'r> {
    row: &'r PgRow,
    at: usize,
}

impl<'r> ArrayLists<'r> {
    pub(super) fn new(row: &'r PgRow) -> Self {
        Self { row, at: 0 }
    }

    pub(super) fn next<T: Across<'r>>(&mut self) -> Result<Vec<T>> {
        T::read(self)
    }

    /// The next array, which must be of `T`.
    pub(super) fn column<T: Cell<'r>>(&mut self) -> Result<Cells<'r>> {
        let value = self.row.try_get_raw(self.at)?;
        let index = self.at.to_string();
        self.at += 1;
        let wrong = |source| Error::ColumnDecode { index, source };
        if value.format() != PgValueFormat::Binary {
            return Err(wrong("not in binary".into()));
        }
        // An aggregate over no rows is NULL.
        if value.is_null() {
            return Ok(Cells { left: 0, rest: &[] });
        }
        value.as_bytes().and_then(|array| Cells::open(array, T::OID)).map_err(wrong)
    }
}

/// A one-dimensional array as PostgreSQL sends it: dimensions, whether there are NULLs, the type of the elements, their number
/// and the number of the first, all of four bytes; then each element with its length before it, -1 for NULL.
pub(super) struct Cells<'r> {
    pub(super) left: usize,
    rest: &'r [u8],
}

impl<'r> Cells<'r> {
    fn open(array: &'r [u8], oid: u32) -> Result<Self, BoxDynError> {
        let mut cells = Self { left: 0, rest: array };
        let dimensions = cells.number()?;
        cells.number()?;
        let given = cells.number()?.cast_unsigned();
        if given != oid {
            return Err(format!("an array of type {given} instead of {oid}").into());
        }
        match dimensions {
            0 => return Ok(cells),
            1 => cells.left = usize::try_from(cells.number()?)?,
            more => return Err(format!("an array of {more} dimensions").into()),
        }
        cells.number()?;
        Ok(cells)
    }

    fn take(&mut self, bytes: usize) -> Result<&'r [u8], BoxDynError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("an array that ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<i32, BoxDynError> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into()?))
    }

    /// The next element.
    pub(super) fn next<T: Cell<'r>>(&mut self) -> Result<T> {
        let read = |cells: &mut Self| match cells.number()? {
            -1 => T::read(None),
            length => T::read(Some(cells.take(usize::try_from(length)?)?)),
        };
        self.left = self.left.saturating_sub(1);
        read(self).map_err(Error::Decode)
    }
}

/// An element of an array.
pub(super) trait Cell<'r>: Sized {
    /// PostgreSQL's number of its type.
    const OID: u32;

    /// Reads the element, none for NULL.
    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError>;
}

const TEXT: u32 = 25;

impl<'r> Cell<'r> for &'r str {
    const OID: u32 = TEXT;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        Ok(std::str::from_utf8(bytes.ok_or("NULL")?)?)
    }
}

impl<'r> Cell<'r> for Cow<'r, str> {
    const OID: u32 = TEXT;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        <&str>::read(bytes).map(Self::Borrowed)
    }
}

impl<'r> Cell<'r> for String {
    const OID: u32 = TEXT;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        <&str>::read(bytes).map(str::to_owned)
    }
}

impl<'r> Cell<'r> for i64 {
    const OID: u32 = 20;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        Ok(Self::from_be_bytes(bytes.ok_or("NULL")?.try_into()?))
    }
}

impl<'r> Cell<'r> for f64 {
    const OID: u32 = 701;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        Ok(Self::from_be_bytes(bytes.ok_or("NULL")?.try_into()?))
    }
}

impl<'r, T: Cell<'r>> Cell<'r> for Option<T> {
    const OID: u32 = T::OID;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        bytes.map(|bytes| T::read(Some(bytes))).transpose()
    }
}

/// An enumeration's value, stored as one word.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Word<T>(pub(super) T);

impl<'r, T: DeserializeOwned> Cell<'r> for Word<T> {
    const OID: u32 = TEXT;

    fn read(bytes: Option<&'r [u8]>) -> Result<Self, BoxDynError> {
        let word: StrDeserializer<'_, NoSuchWord> = <&str>::read(bytes)?.into_deserializer();
        Ok(Self(T::deserialize(word)?))
    }
}

/// A row that lies across arrays, one for each of its columns.
pub(super) trait Across<'r>: Sized {
    fn read(lists: &mut ArrayLists<'r>) -> Result<Vec<Self>>;
}

macro_rules! tuples_lie_across {
    ($(($first:ident $($other:ident)*))+) => {
        $(impl<'r, $first: Cell<'r>, $($other: Cell<'r>),*> Across<'r> for ($first, $($other),*) {
            #[expect(non_snake_case, reason = "columns are called as their types")]
            fn read(lists: &mut ArrayLists<'r>) -> Result<Vec<Self>> {
                let mut $first = lists.column::<$first>()?;
                $(let mut $other = lists.column::<$other>()?;)*
                let mut rows = Vec::new();
                while $first.left > 0 {
                    rows.push(($first.next()?, $($other.next()?),*));
                }
                Ok(rows)
            }
        })+
    };
}
tuples_lie_across!((A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H));

/// Declares a row that comes within another: its fields are the columns, in their order.
macro_rules! row_within {
    ($(#[$of:meta])* $seen:vis struct $name:ident { $($field_seen:vis $field:ident: $type:ty,)+ }) => {
        $(#[$of])*
        #[derive(serde::Deserialize)]
        $seen struct $name {
            $($field_seen $field: $type,)+
        }

        impl<'r> $crate::store::within::Across<'r> for $name {
            fn read(lists: &mut $crate::store::within::ArrayLists<'r>) -> sqlx::Result<Vec<Self>> {
                $(let mut $field = lists.column::<$type>()?;)+
                let mut rows = Vec::new();
                while [$($field.left),+].iter().any(|left| *left > 0) {
                    rows.push(Self { $($field: $field.next()?,)+ });
                }
                Ok(rows)
            }
        }
    };
}
pub(super) use row_within;
