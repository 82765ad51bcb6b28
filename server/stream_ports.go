package server

import (
	"context"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
)

// Many is the way to the back ends for many metering points at once: one round
// trip a call, of a bounded number of metering points. What the interfaces for
// one promise, these do for each.
type Many struct {
	Facts     ManyFacts
	Rows      ManyRows
	Opener    ManyOpener
	Recorder  ManyRecorder
	Manifests ManifestSigner
}

func (m Many) whole() bool {
	return m.Facts != nil && m.Rows != nil && m.Opener != nil && m.Recorder != nil && m.Manifests != nil
}

// The most of one call, whichever is reached first.
const (
	manyPoints = 1000  // metering points
	manyBlocks = 20000 // stored days that their grants read, and days asked for, over all fields
)

// ManyFacts fetches sealed facts as they are stored at this moment.
type ManyFacts interface {
	// LegalFiles returns the current sealed legal files, each with the one
	// before, in the order asked for; of a metering point that has none, an empty
	// one.
	LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error)
	// CandidateFiles is Candidates, with the versions before.
	CandidateFiles(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]Candidate, error)
	// Versions returns the newest stored version of each legal file, in the order
	// asked for; 0 where there is none.
	Versions(ctx context.Context, eans []meter.EAN) ([]uint64, error)
}

// ManyRows fetches ciphertext under grants.
type ManyRows interface {
	// BlocksOfMany returns what Blocks would of each grant, parallel to them; of
	// an empty grant nothing. The grants are of different metering points. As of
	// an instant it returns the versions that were the newest then; zero: now.
	BlocksOfMany(ctx context.Context, grants []authz.Grant, asOf time.Time) ([]PointBlocks, error)
}

// PointBlocks is what is stored of one metering point.
type PointBlocks struct {
	Keys   []envelope.KeyRecord
	Blocks []envelope.SealedBlock
}

// ManyOpener has the blocks of many metering points opened in one call.
type ManyOpener interface {
	// OpenMany returns one OpenedUnit for each unit, in order. It fails with
	// ErrNoCryptoserver or ErrTokenRefused as Open does; what a cryptoserver
	// refuses of one metering point is in its Err.
	OpenMany(ctx context.Context, r OpenManyRequest) ([]OpenedUnit, error)
}

// OpenManyRequest is what is to be opened for one caller.
type OpenManyRequest struct {
	Token       string // the caller's access token, as presented
	Supplier    []byte // sealed record
	Interaction [16]byte
	Units       []OpenUnit
}

// OpenUnit is one metering point with all evidence for it.
type OpenUnit struct {
	LegalFile []byte // sealed
	Request   authz.Request
	PointBlocks
}

// OpenedUnit is what a cryptoserver gives of one metering point. Err is
// authz.ErrNoRelation or ErrEvidenceRefused; then the rest is empty.
type OpenedUnit struct {
	Opened
	Err error
}

// ManyRecorder keeps the access log.
type ManyRecorder interface {
	// RecordMany returns without an error only once the records are durable. They
	// are of one interaction, each of another metering point; all are stored, or
	// none. After an error that is not known.
	RecordMany(ctx context.Context, records []audit.Record) error
}

// ManifestSigner has a cryptoserver sign what came of a stream.
type ManifestSigner interface {
	// SignManifest returns a compact JWS. It fails with ErrNoCryptoserver or
	// ErrTokenRefused as Open does.
	SignManifest(ctx context.Context, r ManifestRequest) (string, error)
}

// ManifestRequest is what came of all parts of a stream.
type ManifestRequest struct {
	Token       string // the caller's access token, as presented
	Supplier    []byte // sealed record
	Interaction [16]byte
	Query       [32]byte
	Format      string   // ndjson, csv
	Digest      [32]byte // of the lines of all metering points

	// How many metering points were answered: Points is the sum of Given, Partly,
	// Withheld, and Failed, which have a problem of their own. Of LeftOut nothing
	// is granted.
	Points, Given, Partly, Withheld, Failed, LeftOut uint32
	Expected, Delivered                              uint64 // values
	Parts                                            uint32 // of which the stream was put together, from 1
}
