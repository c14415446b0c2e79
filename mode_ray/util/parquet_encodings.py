"""How the columns of a parquet file are encoded."""

import pyarrow as pa


def column_encodings(schema: pa.Schema) -> dict[str, list[str]]:
    """Encodings by column. Floats rarely repeat, so a dictionary of them would only cost time."""
    leaves: dict[bool, list[str]] = {False: [], True: []}
    for field in schema:
        nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
        kind = field.type.value_type if nested else field.type
        # Parquet's name for the values of a list.
        leaves[pa.types.is_floating(kind)].append(f"{field.name}.list.element" if nested else field.name)
    return {"use_dictionary": leaves[False], "use_byte_stream_split": leaves[True]}
