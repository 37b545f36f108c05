//! Columns of `kubectl get`, and how a cell is read from an object.

use jiff::Timestamp;
use serde_json::Value;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub kind: &'static str,
    /// `name` for the first column, else empty.
    pub format: &'static str,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i32,
    /// The cell of an object at a time.
    pub cell: fn(&Value, Timestamp) -> Value,
}

impl Column {
    /// A text column.
    pub const fn text(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            priority: 0,
            cell,
        }
    }

    /// A number column.
    pub const fn integer(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self {
            kind: "integer",
            ..Self::text(name, cell)
        }
    }

    /// The same column, shown with `-o wide` only.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }
}

/// The name, first in every table.
pub const NAME_COLUMN: Column = Column {
    format: "name",
    ..Column::text("Name", |object, _| object["metadata"]["name"].clone())
};
/// The age, last before the wide columns.
pub const AGE_COLUMN: Column = Column::text("Age", age);
/// A resource that shows only its age.
pub const AGE: &[Column] = &[AGE_COLUMN];

/// `3d4h` since the object's creation.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now)
}

/// A timestamp field as the time that has passed since.
pub fn since(stamp: &Value, now: Timestamp) -> Value {
    let Some(then) = stamp.as_str().and_then(|s| s.parse::<Timestamp>().ok()) else {
        return Value::from("<unknown>");
    };
    Value::from(human_duration(now.as_second() - then.as_second()))
}

/// Seconds as upstream prints durations: two units at most, fewer when large.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let with = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => with(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => with(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => with(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

/// The text at a path, or a placeholder.
pub fn text_or(object: &Value, pointer: &str, otherwise: &str) -> Value {
    match object.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => Value::from(text.as_str()),
        Some(Value::Null | Value::String(_)) | None => Value::from(otherwise),
        Some(other) => Value::from(other.to_string()),
    }
}

/// The number at a path, 0 if absent.
pub fn count(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}
