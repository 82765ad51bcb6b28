package auditlog

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// What says of what kind a finding is.
type What string

// Findings: something was altered, removed or forged, or never recorded.
const (
	LogCut        What = "log-cut"          // the log is shorter than a checkpoint says
	LogForked     What = "log-altered"      // the tree is not the one that was signed
	BadCheckpoint What = "checkpoint-bad"   // does not verify, or is out of place
	LeafMissing   What = "leaf-missing"     // a leaf or hash of the log is gone
	TreeDamaged   What = "tree-damaged"     // a stored hash does not follow from the leaves
	RowMissing    What = "row-missing"      // what a leaf is of is gone
	RowChanged    What = "row-changed"      // what a leaf is of is not what was logged
	RowUnlogged   What = "row-unlogged"     // a row that the log does not have
	Backdated     What = "record-backdated" // says a time long before the log had got to where it stands
	RowBad        What = "row-bad"          // a row that cannot be read, or whose seal does not verify

	NotRecorded      What = "opened-not-recorded"       // a cryptoserver opened what no record tells of
	Another          What = "opened-beside-record"      // opened for a recorded interaction, but not what it tells of
	NotJournaled     What = "recorded-not-opened"       // a record's receipt is in no journal
	ReceiptBad       What = "receipt-bad"               // a record's receipt is another's
	OpenedUnstored   What = "opened-on-unstored-file"   // opened on a legal file that is not the one stored: a step that was sealed and kept back
	RecordedUnstored What = "recorded-on-unstored-file" // a record names a legal file, or supplier record, that is not the one stored
	FileBroken       What = "file-chain-broken"         // a legal file is not what its step makes of the version before
	SupplierBroken   What = "supplier-chain-broken"     // a supplier record is not what may be made of the version before
	StepNotRecorded  What = "step-not-recorded"         // a step of a supplier or an employee was stored without a record
	StepOtherwise    What = "step-recorded-otherwise"   // or with one that tells it as another's, or as another step
	RecordedNotTaken What = "recorded-not-taken"        // a record of a step that the legal file, or supplier record, it names does not know
	JournalBroken    What = "journal-broken"            // entries of a journal are missing or do not follow on one another
	JournalCut       What = "journal-cut"               // a journal ends before its end
	BlockMissing     What = "sealed-block-missing"      // was stored, and is not there; a day may have gone back to an older version
	BlockChanged     What = "sealed-block-changed"      // has another ciphertext than any that was sealed
	TooMany          What = "too-many-changed-blocks"   // to tell which of them were sealed again
)

// Notices: nothing was altered as far as can be told.
const (
	JournalTorn   What = "journal-torn"      // the machine crashed: entries after the last may be lost
	LostInCrash   What = "lost-in-crash"     // a record's receipt is after the end of a torn journal
	OpenedAgain   What = "opened-again"      // the same was opened twice for one interaction, as a retry does
	NotStored     What = "sealed-not-stored" // blocks sealed but never stored, as an import that finds nothing new does
	FactNotStored What = "fact-not-stored"   // a sealed fact of a version that is not stored, as a write that failed leaves
	FactForked    What = "fact-forked"       // a sealed fact of a version of which another is stored, as two writers at once make
	StillOpen     What = "journal-open"      // of a server that runs, or that was never heard of again
	NotYetSettled What = "not-yet-looked-at" // seal events of which the auditor has not yet stated what is stored
	Unsigned      What = "not-yet-signed"    // leaves after the last checkpoint
)

// IsNotice says whether a kind is no finding.
func (w What) IsNotice() bool {
	switch w {
	case JournalTorn, LostInCrash, OpenedAgain, NotStored, FactNotStored, FactForked, StillOpen, NotYetSettled, Unsigned:
		return true
	}
	return false
}

// Finding is one, or a notice. It holds no personal data but EAN and interaction.
type Finding struct {
	What        What      `json:"what"`
	Leaf        *int64    `json:"leaf,omitempty"` // index in the log
	Row         string    `json:"row,omitempty"`  // kind of row
	EAN         string    `json:"ean,omitempty"`
	GLN         string    `json:"gln,omitempty"`
	Version     int64     `json:"version,omitempty"`
	Interaction string    `json:"interaction,omitempty"`
	Server      string    `json:"server,omitempty"`
	Boot        string    `json:"boot,omitempty"`
	Sequence    uint64    `json:"sequence,omitempty"`
	At          time.Time `json:"at,omitzero"`
	Detail      string    `json:"detail,omitempty"`
}

func (f Finding) String() string {
	var parts []string
	add := func(name, v string) {
		if v != "" {
			parts = append(parts, name+" "+v)
		}
	}
	if f.Leaf != nil {
		add("leaf", fmt.Sprint(*f.Leaf))
	}
	add("of", f.Row)
	add("EAN", f.EAN)
	add("GLN", f.GLN)
	if f.Version != 0 {
		add("version", fmt.Sprint(f.Version))
	}
	add("interaction", f.Interaction)
	add("server", f.Server)
	add("boot", f.Boot)
	if f.Sequence != 0 {
		add("entry", fmt.Sprint(f.Sequence))
	}
	if !f.At.IsZero() {
		add("at", f.At.Format(time.RFC3339))
	}
	if f.Detail != "" {
		parts = append(parts, f.Detail)
	}
	return strings.Join(parts, ", ")
}

func uuidText(id [16]byte) string { return uuid.UUID(id).String() }

func bootText(id [16]byte) string { return hex.EncodeToString(id[:]) }

// Report is the result of Verify.
type Report struct {
	Origin      string    `json:"origin"`
	Size        int64     `json:"size"`              // leaves
	Signed      int64     `json:"signed"`            // leaves that the newest checkpoint that verifies covers
	SignedAt    time.Time `json:"signedAt,omitzero"` // of that checkpoint
	Checkpoints int       `json:"checkpoints"`       // checked, in the database
	Exported    int       `json:"exported"`          // checked, from the folder
	Records     int64     `json:"records"`           // access records
	Entries     int64     `json:"entries"`           // of journals
	Blocks      int64     `json:"blocks"`            // named by seal events
	Files       int64     `json:"legalFiles"`        // versions

	Counts map[What]int64 `json:"counts"`
	// Findings are the first of each kind.
	Findings []Finding `json:"findings"`
}

// listed is how many of each kind are listed; all are counted.
const listed = 100

func (r *Report) add(f Finding) {
	r.count(f.What, 1)
	if r.Counts[f.What] <= listed {
		r.Findings = append(r.Findings, f)
	}
}

func (r *Report) count(w What, n int64) {
	if n > 0 {
		r.Counts[w] += n
	}
}

// Clean says that there is no finding but notices.
func (r *Report) Clean() bool {
	for w := range r.Counts {
		if !w.IsNotice() {
			return false
		}
	}
	return true
}
