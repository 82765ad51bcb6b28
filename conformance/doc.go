// Package conformance is the pack by which a supplier tries its own programs
// against Kluis, and Kluis is held to its contract: test metering points with
// facts and readings of which everything is known, requests, and what must be
// answered to each, to the last value.
//
// It has three parts:
//
//   - the metering points (points.go): the steps of their legal files and the
//     readings that are stored. Whoever sets up an installation seeds them;
//   - the cases (cases.go): a request each, as one of the test suppliers, and
//     the whole answer. The values expected are worked out in expect.go, in the
//     plainest way there is, and by nothing of what answers requests: no
//     decision, no aggregation, no time zone arithmetic of package meter;
//   - the runner (runner.go), which knows of an installation what a supplier
//     knows: two URLs, an authority and a certificate. It speaks HTTP only.
//
// All days are told from the day on which the pack was seeded, because readings
// are kept for a time only. The numbers of metering points and suppliers begin
// with 952, which GS1 keeps for demonstrations: they are nobody's.
package conformance
