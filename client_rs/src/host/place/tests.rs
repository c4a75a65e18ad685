use super::*;
use crate::connect::Builder;

const MEMBERS: usize = 4;

fn set() -> Place {
    let provider = Builder::new("http://localhost:1").connect_lazy().unwrap();
    Place::over(GrpcNamespaceSet::new(vec![provider; MEMBERS]))
}

fn namespace() -> Place {
    Place::Namespace(Box::new(
        Builder::new("http://localhost:1").connect_lazy().unwrap(),
    ))
}

#[tokio::test]
async fn what_belongs_to_a_workflow_is_where_it_is() {
    let place = set();
    let mut seen = [false; MEMBERS];
    for number in 0..50 {
        let id = format!("workflow-{number}");
        let index = place.of_workflow(&id);
        seen[index] = true;
        for resource in super::super::held::lock_keys(&id) {
            assert_eq!(place.of_lock(&resource), index, "{resource}");
        }
        let item = place.of_item(QueueType::Workflow, &id).await.unwrap();
        assert_eq!(item, index);
        // The children of another one are withheld where they are.
        let key = place.children_key("children.parent@1".into(), &id);
        assert_eq!(place.of_lock(&key), index);
    }
    assert_eq!(seen, [true; MEMBERS]);
}

#[tokio::test]
async fn tokens_say_which_member_has_given_them() {
    let place = set();
    let given: Vec<String> = (0..MEMBERS)
        .map(|index| place.tag(format!("{index}.a@b"), index))
        .collect();
    assert_eq!(given[2], "2.a@b@2");
    assert_eq!(place.untag(&given[3]), (3, "3.a@b".into()));
    let by_member = place.by_member(&given);
    assert_eq!(by_member.len(), MEMBERS);
    assert_eq!(by_member[&1], ["1.a@b"]);
}

#[tokio::test]
async fn in_a_namespace_nothing_is_marked() {
    let place = namespace();
    assert_eq!(place.tag("a".into(), 0), "a");
    assert_eq!(place.untag("a@0"), (0, "a@0".into()));
    assert_eq!(place.children_key("children.p".into(), "c"), "children.p");
    assert_eq!(place.of_lock("children.p@0"), 0);
    assert_eq!(place.turns().collect::<Vec<_>>(), [0]);
}

#[tokio::test]
async fn each_time_another_member_is_asked_first() {
    let place = set();
    let mut firsts: Vec<usize> = (0..MEMBERS)
        .map(|_| {
            let mut order: Vec<usize> = place.turns().collect();
            let first = order[0];
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
            first
        })
        .collect();
    firsts.sort_unstable();
    assert_eq!(firsts, [0, 1, 2, 3]);
}
