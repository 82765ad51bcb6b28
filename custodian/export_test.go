package custodian

import (
	"bufio"
	"bytes"
	"time"
)

// Hurry makes everything that waits wait little.
func (c *Custodian) Hurry(call time.Duration) {
	c.timing = timing{
		call: call, work: 4 * call, again: 10 * time.Millisecond,
		ack: 2 * call, patience: 4 * call, tries: 40,
	}
}

// Grace is the time a call may take and servers may take to acknowledge.
func (c *Custodian) Grace() time.Duration { return c.timing.ack }

// Sync is sync.
var Sync = (*Custodian).sync

// Append is append.
var Append = (*Custodian).append

var (
	ErrTorn      = errTorn
	EncodeRecord = encodeRecord
)

const CopyMagic = copyMagic

// ReadRecord reads the first record of a file's rest.
func ReadRecord(b []byte) (Appended, int64, error) {
	return readRecord(bufio.NewReader(bytes.NewReader(b)), int64(len(b)))
}
