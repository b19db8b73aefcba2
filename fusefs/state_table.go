package fusefs

// tableBytes is the greatest size of a table of a State.
const tableBytes = 8 << 30
