// Package route tells which member of a namespace set has what has a key: a workflow's id, an event's
// id, the resource of a lock. It is the same in every language.
package route

import (
	"crypto/sha256"
	"encoding/binary"
)

// MemberOf returns the index of a key among the members that GetNamespaceSet names.
func MemberOf(key string, members int) int {
	digest := sha256.Sum256([]byte(key))
	return jump(binary.BigEndian.Uint64(digest[:8]), members)
}

// jump is jump consistent hash, by Lamping and Veach: the bucket of a key, from 0.
func jump(key uint64, buckets int) int {
	bucket, following := -1, 0
	for following < buckets {
		bucket = following
		key = key*2862933555777941757 + 1
		following = int(float64(bucket+1) * (float64(int64(1)<<31) / float64((key>>33)+1)))
	}
	return bucket
}
