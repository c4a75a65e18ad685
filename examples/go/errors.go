package main

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	pb "wfe-persistence/examples/go/gen/wfe/persistence/v1"
)

// A Failure is the machine-readable part of a failed call; the message text is for people.
type Failure struct {
	Reason   pb.ErrorReason
	Metadata map[string]string
	// Fields has the path of each invalid field and the violation, such as JSON_INVALID.
	Fields map[string]string
}

func (f Failure) String() string {
	return fmt.Sprint(strings.TrimPrefix(f.Reason.String(), "ERROR_REASON_"), " ", f.Metadata, " ", f.Fields)
}

// failure reads the details of an error; an error from elsewhere has reason UNSPECIFIED.
func failure(err error) Failure {
	var f Failure
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "wfe.persistence" {
				f.Reason = pb.ErrorReason(pb.ErrorReason_value["ERROR_REASON_"+detail.Reason])
				f.Metadata = detail.Metadata
			}
		case *errdetails.BadRequest:
			f.Fields = map[string]string{}
			for _, violation := range detail.FieldViolations {
				f.Fields[violation.Field] = violation.Reason
			}
		}
	}
	return f
}

// expect accepts a failure with that reason, and returns an error for everything else.
func expect(err error, reason pb.ErrorReason) (Failure, error) {
	f := failure(err)
	if err == nil || f.Reason != reason {
		return f, fmt.Errorf("expected %v, got: %w", reason, err)
	}
	return f, nil
}
